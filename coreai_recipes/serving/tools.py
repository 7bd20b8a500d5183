"""Calls of tools in an answer, as the model's chat template writes them.

A template that takes tools shows earlier calls in the form in which its model was trained to write new ones; the marks
in its source say which form that is.
"""

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coreai_recipes.generate.stopping import Stops
from coreai_recipes.json_reader import load_json, refuse_constant

Schemas = Mapping[str, Mapping[str, Any]]
Found = list[tuple[str, Any]]  # each call's name and arguments


@dataclass(frozen=True)
class ToolForm:
    """`begin` and what follows it up to `end` (or the answer's) is a call; `signs` are the words of a template that
    means it; `read` gives the calls of such a text, given the tools' parameters. ValueError where it is none."""

    begin: str
    end: str
    signs: tuple[str, ...]
    read: Callable[[str, Schemas], Found]

    @property
    def is_object(self) -> bool:
        """Whether a call is the whole answer, without marks."""
        return self.begin == "{"

    @property
    def shown(self) -> tuple[str, ...]:
        """The tokens that must be text although a tokenizer may call them special."""
        return (self.begin, *((self.end,) if self.end else ()), "[ARGS]", "[CALL_ID]", QUOTE)


QUOTE = '<|"|>'  # Gemma 4's, around a string that has no escapes
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(\{.*\})\s*", re.DOTALL)
_GEMMA = re.compile(r"\s*call:([\w.-]+)(\{.*\})\s*", re.DOTALL)
_BARE_KEY = re.compile(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:")


def _parse(text: str) -> Any:
    return load_json(text, parse_constant=refuse_constant)


def _read_objects(text: str, schemas: Schemas) -> Found:
    """`{"name": ..., "arguments": ...}`, or a list of these (Hermes, Qwen, Mistral; Llama says `parameters`)."""
    document = _parse(text)
    found: Found = []
    for each in document if isinstance(document, list) else [document]:
        arguments = each.get("arguments", each.get("parameters", {})) if isinstance(each, dict) else None
        if arguments is None or not isinstance(each.get("name"), str):
            raise ValueError("not a call")
        found.append((each["name"], _parse(arguments) if isinstance(arguments, str) else arguments))
    return found


def _read_named(text: str, schemas: Schemas) -> Found:
    """Mistral's: a list as above, or `NAME[ARGS]{...}`."""
    named = _NAMED.fullmatch(text)
    return [(named[1], _parse(named[2]))] if named else _read_objects(text, schemas)


def _read_tags(text: str, schemas: Schemas) -> Found:
    """Qwen3-Coder's and Qwen3.5's: `<function=NAME><parameter=KEY>VALUE</parameter></function>`, values bare."""
    functions = _FUNCTION.findall(text)
    if not functions:
        raise ValueError("not a call")
    return [
        (name, {key: _typed(value, _type_of(schemas, name, key)) for key, value in _PARAMETER.findall(inside)})
        for name, inside in functions
    ]


def _type_of(schemas: Schemas, name: str, key: str) -> Any:
    properties = schemas.get(name, {}).get("properties")
    described = properties.get(key) if isinstance(properties, dict) else None
    return described.get("type") if isinstance(described, dict) else None


def _typed(text: str, kind: Any) -> Any:
    """A bare value, as the tool's schema has it: a string unless it says otherwise."""
    if kind in (None, "string"):
        return text
    try:
        return _parse(text)
    except ValueError:
        return text


def _read_gemma(text: str, schemas: Schemas) -> Found:
    """Gemma 4's: `call:NAME{key:<|"|>text<|"|>,count:3}`."""
    call = _GEMMA.fullmatch(text)
    if not call:
        raise ValueError("not a call")
    parts = call[2].split(QUOTE)  # what lies outside of strings and inside, in turn
    as_json = [json.dumps(part) if n % 2 else _BARE_KEY.sub(r'\1"\2":', part) for n, part in enumerate(parts)]
    return [(call[1], _parse("".join(as_json)))]


FORMS = (
    ToolForm("<tool_call>", "</tool_call>", ("<tool_call>", "<function="), _read_tags),
    ToolForm("<tool_call>", "</tool_call>", ("<tool_call>",), _read_objects),
    ToolForm("[TOOL_CALLS]", "", ("[TOOL_CALLS]",), _read_named),
    ToolForm("<|tool_call>", "<tool_call|>", ("<|tool_call>",), _read_gemma),
    ToolForm("{", "", ('"name": "', '"parameters": '), _read_objects),  # Llama 3: the answer is the object
)  # the first whose signs a template has


def form_of(template: str) -> ToolForm | None:
    """The form in which a chat template writes calls; None where it takes no tools, or writes them in no known form."""
    if not re.search(r"\btools\b", template):
        return None
    return next((form for form in FORMS if all(sign in template for sign in form.signs)), None)


class ToolReader:
    """Parts an answer, piece by piece, into the text before its calls and these."""

    def __init__(self, form: ToolForm, tools: Sequence[Mapping[str, Any]]) -> None:
        self._form = form
        functions = [tool["function"] for tool in tools]
        self._schemas = {each["name"]: each.get("parameters") or {} for each in functions}
        self._stops = Stops([form.begin])
        self._shown, self._held = "", ""
        self._is_text = False

    def add(self, piece: str) -> str:
        """What of the text can be shown; nothing from the first call on."""
        if self._is_text:
            return piece
        if self._stops.found:
            self._held += piece
            return ""
        text = self._stops.add(piece)
        self._shown += text
        if behind := self._stops.behind:
            self._held = behind
            if self._form.is_object and self._shown.strip():  # an object within a text is a part of it
                self._is_text = True
                return text + self._held
        return text

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls in OpenAI's form. What was begun and is no call is text."""
        if self._is_text or not self._stops.found:
            return self._stops.finish(), []
        try:
            found = self._read()
        except ValueError:
            return self._held, []
        return "", [
            {
                "id": secrets.token_hex(5)[:9],  # Mistral's templates take no other length
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for name, arguments in found
        ]

    def _read(self) -> Found:
        form = self._form
        if form.is_object:
            found = form.read(self._held, self._schemas)
            if any(name not in self._schemas for name, _ in found):
                raise ValueError("not a call")
            return found
        blocks = self._held.split(form.begin)[1:]
        insides = [block.partition(form.end)[0] if form.end else block for block in blocks]
        return [call for inside in insides for call in form.read(inside.strip(), self._schemas)]
