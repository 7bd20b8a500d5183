"""The GGUF header: metadata and the table of tensors, checked against the size of the file before it is believed.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. gguf.GGUFReader is not used: it maps the file (mapped
pages count as resident), and a corrupt count makes it loop, allocate without bound or raise whatever numpy raises.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.errors import CheckpointError

# What no real file reaches, and a corrupt one easily does. Gemma 4's header, the longest so far, has 15 MB: 262,144
# tokens with a score and a type each, 514,906 merges. Experts are stacked, so that a thousand tensors are many.
MOST_TENSORS = 1 << 17
MOST_PAIRS = 1 << 14
MOST_ELEMENTS = 1 << 22  # of all lists together; a short text takes some 60 bytes once it is read
LONGEST_HEADER = 1 << 26
LONGEST_NAME = 256  # ggml's tensors have 64 at most
MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
CHUNK = 1 << 18

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT32, STRING, ARRAY = 6, 8, 9
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file; `shape` is in torch's order, the reverse of GGUF's: rows are quantised.

    `stamp` (size, modification time of the file) tells later whether the file is still the same.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    path: Path
    stamp: tuple[int, int]
    start: int
    byte_count: int


@dataclass(frozen=True)
class Header:
    """The header of one file."""

    path: Path
    metadata: Metadata
    tensors: tuple[StoredTensor, ...]


def read_header(path: Path) -> Header:
    """Parse the header of the GGUF file at `path`, reading nothing beyond it.

    Raises CheckpointError when the file is missing, not GGUF version 2 or 3 in little endian, cut off, or says what
    cannot be: counts, lengths or offsets beyond its end, unknown types, rows that are no whole number of blocks.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return _parse(_Cursor(path, file))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def stamp(file: BinaryIO) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


class _Cursor:
    """Reads a header front to back, a chunk at a time, and never asks for more than the file has left."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.stamp = stamp(file)
        self.done = 0
        self.elements = 0
        self._chunk = b""
        self._at = 0

    @property
    def left(self) -> int:
        return self.stamp[0] - self.done

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {reason}")

    def take(self, count: int, what: str) -> bytes:
        if self._at + count > len(self._chunk):
            self._fill(count, what)
        start = self._at
        self._at += count
        self.done += count
        return self._chunk[start : self._at]

    def _fill(self, count: int, what: str) -> None:
        """Have `count` bytes in the chunk from `_at` on."""
        if count > self.left:
            raise self.refuse(f"the file ends inside {what}: it is cut off or corrupt")
        if self.done + count > LONGEST_HEADER:
            raise self.refuse(f"has a header of more than {LONGEST_HEADER >> 20} MiB: the file is corrupt")
        rest = self._chunk[self._at :]
        self._chunk, self._at = rest + self.file.read(max(count - len(rest), CHUNK)), 0
        if len(self._chunk) < count:
            raise self.refuse(f"the file ends inside {what}: it has changed while it was read")

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str, longest: int = LONGEST_HEADER) -> str:
        length = int.from_bytes(self.take(8, what), "little")
        if length > LONGEST_HEADER or longest < length <= self.left:
            raise self.refuse(f"{what} claims a string of {length} bytes: the file is corrupt")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse(f"{what} holds a string that is not UTF-8: the file is corrupt") from error

    def name(self, what: str) -> str:
        """A string that messages will show, so it must fit on a line."""
        name = self.string(what, LONGEST_NAME)
        if not name.isprintable():
            raise self.refuse(f"{what} holds unprintable characters: the file is corrupt")
        return name

    def count(self, what: str, smallest: int, most: int) -> int:
        """A number of things of at least `smallest` bytes each, all of which must still fit into the file."""
        count = int(self.number("Q", f"the number of {what}"))
        if count * smallest > self.left:
            raise self.refuse(f"claims {count} {what}, more than the file can hold: it is cut off or corrupt")
        if count > most:
            raise self.refuse(f"has {count} {what}; at most {most} are read")
        return count

    def length(self, what: str, smallest: int) -> int:
        """The length of a list; all of a file's lists together are bounded."""
        count = self.count(what, smallest, MOST_ELEMENTS - self.elements)
        self.elements += count
        return count


def _parse(cursor: _Cursor) -> Header:
    if cursor.left < 24 or cursor.take(4, "the header") != b"GGUF":
        raise cursor.refuse("is not a GGUF file: it does not begin with a GGUF header")
    version = cursor.number("I", "the version")
    if version & 0xFFFF == 0:
        raise cursor.refuse("is a big-endian GGUF file, which is not supported: convert it for little endian")
    if version not in (2, 3):
        raise cursor.refuse(f"is GGUF version {version}; versions 2 and 3 are supported: convert it again")
    tensor_count = cursor.count("tensors", smallest=32, most=MOST_TENSORS)
    pair_count = cursor.count("metadata pairs", smallest=13, most=MOST_PAIRS)
    values: dict[str, Any] = {}
    for index in range(pair_count):
        key = cursor.name(f"metadata key {index}")
        if key in values:
            raise cursor.refuse(f"metadata key {key!r} occurs twice")
        values[key] = _read_value(cursor, cursor.number("I", key), key)
    tensors = [_read_tensor(cursor, index) for index in range(tensor_count)]
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.refuse(f"general.alignment is {alignment!r}, not a power of two")
    size = cursor.stamp[0]
    data_start = -(-cursor.done // alignment) * alignment
    placed = [make(data_start) for make in tensors]
    seen: set[str] = set()
    for tensor in placed:
        if tensor.name in seen:
            raise cursor.refuse(f"tensor {tensor.name} occurs twice")
        seen.add(tensor.name)
        if (tensor.start - data_start) % alignment:
            raise cursor.refuse(f"tensor {tensor.name} does not start at a multiple of {alignment} bytes")
        if tensor.start + tensor.byte_count > size:
            missing = tensor.start + tensor.byte_count - size
            raise cursor.refuse(f"tensor {tensor.name} ends {missing} bytes beyond the file: it is cut off or corrupt")
    return Header(cursor.path, Metadata(cursor.path, values), tuple(placed))


def _read_value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == STRING:
        return cursor.string(key)
    if kind == FLOAT32:
        # 1e-5 in float32 is 9.999999747378752e-06; the shortest decimal that rounds to it is what the config said.
        return float(str(np.float32(cursor.number("f", key))))
    if kind in SCALARS:
        return cursor.number(SCALARS[kind], key)
    if kind == ARRAY:
        element = cursor.number("I", key)
        if element == STRING:
            return [cursor.string(key) for _ in range(cursor.length(f"texts in {key}", smallest=8))]
        if element in SCALARS:
            width = struct.calcsize(SCALARS[element])
            count = cursor.length(f"numbers in {key}", smallest=width)
            return list(struct.unpack(f"<{count}{SCALARS[element]}", cursor.take(count * width, key)))
        raise cursor.refuse(f"{key} is a list of values of type {element}, which GGUF does not define")
    raise cursor.refuse(f"{key} has a value of type {kind}, which GGUF does not define")


def _read_tensor(cursor: _Cursor, index: int) -> Callable[[int], StoredTensor]:
    """One row of the tensor table; its place in the file is known once the table's end is."""
    name = cursor.name(f"the name of tensor {index}")
    dimensions = cursor.number("I", name)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise cursor.refuse(f"tensor {name} has {dimensions} dimensions: the file is corrupt")
    shape = tuple(cursor.number("Q", name) for _ in range(dimensions))[::-1]
    number, offset = cursor.number("I", name), cursor.number("Q", name)
    if 0 in shape:
        raise cursor.refuse(f"tensor {name} has the empty shape {shape}: the file is corrupt")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise cursor.refuse(f"tensor {name} has type {number}, which this version of gguf does not know") from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise cursor.refuse(f"tensor {name} has rows of {shape[-1]}, not a multiple of {kind.name}'s blocks of {block}")
    elements = 1
    for size in shape:
        elements *= size
    byte_count = elements // block * block_bytes
    return partial(_place, name, shape, kind, cursor, offset, byte_count)


def _place(
    name: str,
    shape: tuple[int, ...],
    kind: GGMLQuantizationType,
    cursor: _Cursor,
    offset: int,
    byte_count: int,
    start: int,
) -> StoredTensor:
    return StoredTensor(name, shape, kind, cursor.path, cursor.stamp, start + offset, byte_count)
