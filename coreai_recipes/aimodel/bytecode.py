"""Weights in main.mlirb, which is MLIR's bytecode: where they lie, and a program with others in their place.

The format is https://mlir.llvm.org/docs/BytecodeFormat: magic, version, producer, then sections; one of them holds the
resources, which are weights and other large constants, one their names and sizes. A program is small where each weight
is a stand-in of a few bytes. `splice` writes it with the real ones, which come in blocks: none is held.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

MAGIC = b"ML\xefR"
STRINGS, RESOURCES, RESOURCE_OFFSETS = 0, 5, 6  # kinds of sections
ALIGNED = 0x80  # in the byte of a section's kind
BLOB = 0  # the kind of a resource that is bytes
PADDING = b"\xcb"
LONG = Struct("<Q")
# names that coreai-torch draws from a hash that differs in each process
DRAWN = "resource_"

Bytes = bytes | memoryview


class BytecodeError(ValueError):
    """A file that is no bytecode as this reads it."""


@dataclass(frozen=True)
class Section:
    kind: int
    alignment: int | None
    payload: memoryview
    start: int  # of the payload, in the file


@dataclass(frozen=True)
class Resource:
    """An entry of a group: a blob with its alignment, or another entry as it is. `start` is the content's place in the
    file."""

    name: int
    kind: int
    alignment: int
    content: memoryview
    start: int


@dataclass(frozen=True)
class Replacement:
    """What comes in place of a stand-in: `size` bytes, in blocks."""

    size: int
    blocks: Callable[[], Iterable[Bytes]]


class Bytecode:
    """A file's sections, the names in it and its resources by group."""

    def __init__(self, data: Bytes) -> None:
        try:
            self._read(memoryview(data))
        except (IndexError, ValueError) as error:
            raise BytecodeError(f"is no MLIR bytecode: {error}") from None

    @property
    def blobs(self) -> Iterator[tuple[str, memoryview]]:
        """Every blob with its name."""
        for _, entries in self.groups:
            yield from ((self.names[each.name], each.content) for each in entries if each.kind == BLOB)

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Where each blob begins in the file, and its bytes, by its name."""
        entries = (each for _, group in self.groups for each in group if each.kind == BLOB)
        return {self.names[each.name]: (each.start, len(each.content)) for each in entries}

    def _read(self, data: memoryview) -> None:
        if bytes(data[:4]) != MAGIC:
            raise ValueError("it does not begin as such")
        reader = _Reader(data, 4)
        reader.varint()  # the version
        while reader.byte():
            pass  # the producer, which a zero ends
        self.head = data[: reader.at]
        self.sections: list[Section] = []
        while reader.at < len(data):
            kind, length, alignment = reader.byte(), reader.varint(), None
            if kind & ALIGNED:
                alignment = reader.varint()
                reader.at += -reader.at % alignment
            start = reader.at
            self.sections.append(Section(kind & ~ALIGNED, alignment, reader.take(length), start))
        found = {section.kind: section for section in self.sections}
        self.names = list(_strings(found[STRINGS].payload))
        self.groups = list(_groups(found.get(RESOURCE_OFFSETS), found.get(RESOURCES)))


class _Reader:
    def __init__(self, data: memoryview, at: int = 0) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def take(self, size: int) -> memoryview:
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise ValueError("it ends early")
        self.at += size
        return found

    def varint(self) -> int:
        """The zeros below the lowest bit that is set say how many bytes follow; none set, eight."""
        first = self.data[self.at]
        if first == 0:
            self.at += 9
            return int(LONG.unpack(self.data[self.at - 8 : self.at])[0])
        following = (first & -first).bit_length() - 1
        return int.from_bytes(self.take(following + 1), "little") >> (following + 1)


def varint(value: int) -> bytes:
    """As `_Reader.varint` reads it."""
    for following in range(8):
        if value < 1 << 7 * (following + 1):
            return (value << (following + 1) | 1 << following).to_bytes(following + 1, "little")
    return b"\0" + LONG.pack(value)


def _strings(section: memoryview) -> Iterator[str]:
    """The sizes come first, the last string's before all others; then the strings, each with a zero behind it."""
    reader = _Reader(section)
    sizes = [reader.varint() for _ in range(reader.varint())]
    for size in reversed(sizes):
        yield str(reader.take(size)[:-1], "utf-8")


def _encode_strings(names: Iterable[str]) -> bytes:
    encoded = [name.encode() + b"\0" for name in names]
    return b"".join((varint(len(encoded)), *(varint(len(each)) for each in reversed(encoded)), *encoded))


def _groups(offsets: Section | None, resources: Section | None) -> Iterator[tuple[int, list[Resource]]]:
    if offsets is None or resources is None:
        return
    reader, inside = _Reader(offsets.payload), _Reader(resources.payload)
    if reader.varint():
        raise ValueError("it has resources that are not its dialects'")
    while reader.at < len(offsets.payload):
        owner, entries = reader.varint(), []
        for _ in range(reader.varint()):
            name, size, kind = reader.varint(), reader.varint(), reader.byte()
            place = resources.start + inside.at
            entry = _Reader(inside.take(size))
            alignment = 1
            if kind == BLOB:
                alignment, length = entry.varint(), entry.varint()
                entry.at = size - length  # behind what aligns it
                content = entry.take(length)
            else:
                content = entry.data
            entries.append(Resource(name, kind, alignment, content, place + size - len(content)))
        yield owner, entries


def splice(
    program: Bytes, choose: Callable[[str, memoryview], Replacement | None], is_renamed: bool = True
) -> Iterator[Bytes]:
    """The file of `program` in blocks, with a replacement for each blob of whose name and content `choose` gives one.

    Blobs that coreai-torch has named are named by their content, for the same bytes in every process; unless they are
    to keep their names, which takes no look at them.
    """
    opened = Bytecode(program)
    names = list(opened.names)
    alignment = max((each.alignment for _, entries in opened.groups for each in entries), default=1)
    offsets, resources, end = [varint(0)], list[tuple[bytes, int, Callable[[], Iterable[Bytes]]]](), 0
    for owner, entries in opened.groups:
        offsets += [varint(owner), varint(len(entries))]
        for each in entries:
            content = each.content
            found = Replacement(len(content), lambda content=content: [content])  # type: ignore[misc]
            lead = b""
            if each.kind == BLOB:
                found = choose(names[each.name], content) or found
                if is_renamed and names[each.name].startswith(DRAWN):
                    names[each.name] = f"constant_{hashlib.sha256(content).hexdigest()[:16]}"
                lead = varint(each.alignment) + varint(found.size)
                lead += PADDING * (-(end + len(lead)) % each.alignment)
            resources.append((lead, found.size, found.blocks))
            offsets += [varint(each.name), varint(len(lead) + found.size), bytes([each.kind])]
            end += len(lead) + found.size
    changed = {STRINGS: _encode_strings(names), RESOURCE_OFFSETS: b"".join(offsets)}
    yield opened.head
    position = len(opened.head)
    for section in opened.sections:
        # the resources' own alignment is that of the largest blob: it is missing where a short program needed none
        aligned = alignment if section.kind == RESOURCES and alignment > 1 else section.alignment
        payload = changed.get(section.kind, section.payload)
        length = end if section.kind == RESOURCES else len(payload)
        head = bytes([section.kind | (ALIGNED if aligned else 0)]) + varint(length)
        if aligned:
            head += varint(aligned)
            head += PADDING * (-(position + len(head)) % aligned)
        yield head
        position += len(head) + length
        if section.kind != RESOURCES:
            yield payload
            continue
        for lead, size, blocks in resources:
            yield lead
            for block in blocks():
                size -= len(block)
                yield block
            if size:
                raise RuntimeError(f"a weight came with {-size} bytes more than were laid out")
