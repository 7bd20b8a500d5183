"""YAML text -> a tree of values that know where they were written. A leaf: it imports nothing of ours.

The tree is built from the parser's events, without recursion and without PyYAML's constructors: no tag is obeyed, and
depth, aliases and repeated keys are judged while the text is read. Words mean what YAML 1.2's core schema says: only
`true` and `false` are booleans, and `1e-6` is a number.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_DIGITS = 40

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = {re.compile(r"0o[0-7]+"): 8, re.compile(r"0x[0-9a-fA-F]+"): 16}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False} | dict.fromkeys(
    ("", "~", "null", "Null", "NULL")
)

Scalar = str | int | float | bool | None


class Mark(NamedTuple):
    """A place in a file, lines and columns counted from 1; line 0 is a place without lines (`--set KEY=VALUE`)."""

    place: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.place}:{self.line}:{self.column}" if self.line else self.place


@dataclass(frozen=True, eq=False)
class Node:
    """A value and where it was written. `value` is a scalar, a list of nodes, or a dict of nodes by key."""

    value: Scalar | list["Node"] | dict[str, "Node"]
    mark: Mark
    text: str = ""
    """A scalar in the user's own words, with its quotes."""
    keys: dict[str, Mark] = field(default_factory=dict)
    """Where each key of a mapping stands."""
    block: bool = False
    """Whether a collection is written without brackets: then its own mark is that of its first entry."""

    def plain(self) -> Any:
        """The value without marks: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


class YAMLProblem(NamedTuple):
    """Why a text is refused, and where."""

    mark: Mark
    message: str


class _Stop(Exception):
    """Reading cannot go on: the only problem that matters is this one."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.problem = YAMLProblem(mark, message)


@dataclass
class _Open:
    """A collection whose end has not been read yet."""

    node: Node
    anchor: str | None
    key: str | None = None
    has_key: bool = False
    size: int = 1
    height: int = 1


def read_yaml(source: bytes | str, place: str) -> tuple[Node | None, list[YAMLProblem]]:
    """The tree of one YAML document and every reason to refuse it; the tree is None when reading could not go on.

    A `str` is the value of an option, not a file: its marks have no lines.
    """
    reader = _Reader(place, is_file=isinstance(source, bytes))
    try:
        root = reader.read(reader.decode(source))
    except _Stop as stop:
        return None, [*reader.problems, stop.problem]
    return root, reader.problems


class _Reader:
    """Builds the tree from the parser's events, with a stack of its own."""

    def __init__(self, place: str, is_file: bool) -> None:
        self.place = place
        self.is_file = is_file
        self.problems: list[YAMLProblem] = []
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int, int]] = {}
        self.values = 0
        self.root: Node | None = None

    def decode(self, source: bytes | str) -> str:
        """The text, when it is UTF-8, short enough and free of control characters."""
        if len(source) > MAX_BYTES:
            raise _Stop(self.start(), "larger than 1 MiB: a recipe is a page of text")
        try:
            text = source.decode("utf-8-sig") if isinstance(source, bytes) else source
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode("utf-8-sig", errors="replace")
            raise _Stop(self.at_end_of(before), f"not UTF-8: byte 0x{error.object[error.start]:02x}") from None
        found = _UNPRINTABLE.search(text)
        if found:
            raise _Stop(
                self.at_end_of(text[: found.start()]), f"control character U+{ord(found[0]):04X} is not allowed in YAML"
            )
        return text

    def read(self, text: str) -> Node:
        try:
            for event in yaml.parse(text, Loader=_Loader):
                self.take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            words = (error.problem or error.context or "cannot be read").strip()
            if "nesting depth" in words:  # libyaml's own limit, a thousand levels, which it meets while it looks ahead
                raise _Stop(
                    self.mark(mark) if mark else self.start(), f"nested deeper than {MAX_DEPTH} levels"
                ) from None
            raise _Stop(self.mark(mark) if mark else self.start(), f"not YAML: {words}") from None
        except yaml.YAMLError as error:
            raise _Stop(self.start(), f"not YAML: {str(error).splitlines()[0]}") from None
        if self.root is None:
            raise _Stop(self.start(), "empty: a recipe starts with `recipe: 1`" if self.is_file else "no value")
        return self.root

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            if self.root is not None:
                raise _Stop(self.mark(event.start_mark), "a second document: a recipe is one document, without `---`")
        elif isinstance(event, yaml.AliasEvent):
            self.take_alias(event)
        elif isinstance(event, yaml.ScalarEvent):
            self.take_scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self.stack.pop()
            if done.anchor:
                self.anchors[done.anchor] = (done.node, done.size, done.height)
            self.add(done.node, done.size, done.height)

    def open(self, event: Any) -> None:
        mark = self.mark(event.start_mark)
        self.refuse_tag(event, mark)
        if len(self.stack) >= MAX_DEPTH:
            raise _Stop(mark, f"nested deeper than {MAX_DEPTH} levels")
        if self.expects_key():
            raise _Stop(mark, "a key must be a string, not a list or a mapping")
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.anchors.pop(event.anchor, None)
        self.stack.append(_Open(Node(value, mark, block=not event.flow_style), event.anchor))
        self.count(1, mark)

    def take_alias(self, event: Any) -> None:
        mark = self.mark(event.start_mark)
        if self.expects_key():
            raise _Stop(mark, "a key must be a string, not an alias")
        if event.anchor not in self.anchors:
            inside = any(opened.anchor == event.anchor for opened in self.stack)
            why = "refers to the anchor that contains it" if inside else "refers to no earlier anchor"
            raise _Stop(mark, f"alias `*{event.anchor}` {why}")
        node, size, height = self.anchors[event.anchor]
        if len(self.stack) + height > MAX_DEPTH:
            raise _Stop(mark, f"alias `*{event.anchor}` nests deeper than {MAX_DEPTH} levels")
        self.count(size, mark)
        self.add(node, size, height)

    def take_scalar(self, event: Any) -> None:
        mark = self.mark(event.start_mark)
        self.refuse_tag(event, mark)
        if self.expects_key():
            if event.anchor:
                self.anchors[event.anchor] = (Node(event.value, mark, event.value), 1, 0)
            self.take_key(event.value, mark)
            return
        plain = event.style is None or event.style == ""
        text = event.value if plain else f'"{event.value}"'
        node = Node(self.resolve(event.value, mark) if plain else event.value, mark, text)
        if event.anchor:
            self.anchors[event.anchor] = (node, 1, 0)
        self.count(1, mark)
        self.add(node, 1, 0)

    def take_key(self, key: str, mark: Mark) -> None:
        opened = self.stack[-1]
        if key == "<<":
            self.problems.append(YAMLProblem(mark, "`<<` does not merge in a recipe: use `extends` or `like`"))
        elif key in opened.node.keys:
            first = opened.node.keys[key]
            self.problems.append(
                YAMLProblem(mark, f"`{shorten(key)}` is a duplicate key, first given {self.where(first)}")
            )
        else:
            opened.node.keys[key] = mark
        opened.key, opened.has_key = key, True

    def add(self, node: Node, size: int, height: int) -> None:
        """Put a finished value where it belongs: the last value of a repeated key is dropped, it was reported."""
        if not self.stack:
            self.root = node
            return
        opened = self.stack[-1]
        opened.size += size
        opened.height = max(opened.height, height + 1)
        if isinstance(opened.node.value, list):
            opened.node.value.append(node)
        elif isinstance(opened.node.value, dict) and opened.key is not None:
            if opened.key != "<<":
                opened.node.value.setdefault(opened.key, node)
            opened.key, opened.has_key = None, False

    def resolve(self, text: str, mark: Mark) -> Scalar:
        """What an unquoted word stands for in YAML 1.2's core schema."""
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            digits = text.lstrip("+-")
            if len(digits) > MAX_DIGITS:
                self.problems.append(YAMLProblem(mark, f"a number of {len(digits)} digits"))
                return 0
            if len(digits) > 1 and digits[0] == "0":
                self.problems.append(
                    YAMLProblem(mark, f"{text} starts with 0, which some parsers read as octal: write {int(text)}")
                )
            return int(text)
        for pattern, base in _BASED.items():
            if pattern.fullmatch(text) and len(text) <= MAX_DIGITS:
                return int(text[2:], base)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _INFINITE.fullmatch(text):
            return float(text.replace(".", "").lower())
        return text

    def expects_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].node.value, dict) and not self.stack[-1].has_key

    def count(self, size: int, mark: Mark) -> None:
        self.values += size
        if self.values > MAX_VALUES:
            raise _Stop(mark, f"more than {MAX_VALUES} valuesonce aliases are expanded")

    def refuse_tag(self, event: Any, mark: Mark) -> None:
        if event.tag is not None:
            self.problems.append(
                YAMLProblem(mark, f"tag `{shorten(event.tag)}`: a recipe is plain data and has no tags")
            )

    def mark(self, mark: Any) -> Mark:
        return Mark(self.place, mark.line + 1, mark.column + 1) if self.is_file else Mark(self.place)

    def where(self, mark: Mark) -> str:
        return f"at line {mark.line}" if self.is_file else "before"

    def start(self) -> Mark:
        return Mark(self.place, 1, 1) if self.is_file else Mark(self.place)

    def at_end_of(self, text: str) -> Mark:
        if not self.is_file:
            return Mark(self.place)
        return Mark(self.place, text.count("\n") + 1, len(text) - text.rfind("\n"))


def shorten(text: str, limit: int = 60) -> str:
    """One line of at most `limit` characters, for messages."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
