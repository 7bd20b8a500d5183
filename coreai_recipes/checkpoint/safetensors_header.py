"""The header of a safetensors file: 8 bytes of length, JSON, then the tensors' bytes without a gap.

Format: https://github.com/huggingface/safetensors#format
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from coreai_recipes.json_reader import load_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_AXES = 32
MOST_TENSORS = 1 << 17  # in one file; Kimi K2 has 140,000 in 61
LONGEST_NAME = 1024
MOST_VALUES = 12 * MOST_TENSORS  # in a header; a tensor of three axes has nine

# Bits of an element, for every dtype of the format (safetensors 0.6, tensor.rs).
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class HeaderTensor:
    """One entry of a header; `start` and `stop` count bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class StoredFile:
    """A weight file as it was when its header was read: size in bytes and time of change in ns."""

    path: Path
    size: int
    changed: int
    data_start: int
    tensors: dict[str, HeaderTensor]


class HeaderError(ValueError):
    """What is wrong with one file's header, without its place."""


def read_header(path: Path) -> StoredFile:
    """The header of one safetensors file, every length and offset checked against the file; else HeaderError."""
    try:
        with path.open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            prefix = file.read(8)
            length = check_length(prefix, stat.st_size)
            header = bytearray(length)
            if file.readinto(header) != length:
                raise HeaderError("ends inside its header")
    except OSError as error:
        raise HeaderError(f"cannot be read: {error.strerror or error}") from error
    tensors = parse_header(bytes(header), stat.st_size - 8 - length)
    return StoredFile(path, stat.st_size, stat.st_mtime_ns, 8 + length, tensors)


def check_length(prefix: bytes, size: int) -> int:
    """The length of the header that a file of `size` bytes says it has in its first 8; else HeaderError."""
    if len(prefix) < 8:
        raise HeaderError(f"is {size} bytes long, too short for a safetensors header")
    length = int.from_bytes(prefix, "little")
    if length > size - 8:
        raise HeaderError(
            f"states that its header is {length} bytes long, and the file has {size}: "
            "it is not a safetensors file, or it was truncated"
        )
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"states that its header is {length} bytes long; at most {MAX_HEADER_BYTES} are read")
    return length


def parse_header(header: bytes, data_bytes: int) -> dict[str, HeaderTensor]:
    """The entries of a header's JSON. They must fill `data_bytes` without a gap or an overlap; else HeaderError."""
    # Before it is parsed: an entry of 60 bytes is ten times that in memory.
    if sum(map(header.count, (b",", b"[", b"{"))) > MOST_VALUES or header.count(b'"data_offsets"') > MOST_TENSORS:
        raise HeaderError(f"has a header with more than {MOST_TENSORS} tensors, or the values of as many")
    try:
        entries = load_json(header, object_pairs_hook=refuse_duplicates)
    except HeaderError:
        raise
    except ValueError as error:
        raise HeaderError(f"has a header that is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise HeaderError("has a header that is not a JSON object")
    entries.pop("__metadata__", None)
    tensors = {name: parse_entry(name, entry) for name, entry in entries.items()}
    end, previous = 0, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != end:
            what = "overlaps" if tensor.start < end else "leaves a gap after"
            raise HeaderError(f"has a header in which {name} {what} {previous}: it starts at {tensor.start}, not {end}")
        end, previous = tensor.stop, name
    if end > data_bytes:
        raise HeaderError(
            f"was truncated: its tensors need {end} bytes after the header, but only {data_bytes} are there"
        )
    if end < data_bytes:
        raise HeaderError(f"has {data_bytes - end} bytes after its last tensor that belong to no tensor")
    return tensors


def parse_entry(name: str, entry: object) -> HeaderTensor:
    """One tensor of a header, its span checked against dtype and shape; else HeaderError."""
    if not name.isprintable():  # lone surrogates, which no terminal takes, and escape sequences, which it would obey
        raise HeaderError(f"has a header with the unprintable name {name!a:.80}")
    if len(name) > LONGEST_NAME:
        raise HeaderError(f"has a header with a name of {len(name)} characters, {name:.80}...")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise HeaderError(f"has a header in which {name} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"has a header in which {name} has the unknown dtype {dtype!r:.80}")
    if not is_list_of_sizes(shape) or len(shape) > MAX_AXES:
        raise HeaderError(f"has a header in which {name} has the shape {shape!r:.80}")
    if not is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"has a header in which {name} has the data_offsets {offsets!r:.80}")
    start, stop = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (stop - start):
        taken = f"takes {-(-bits // 8)}" if bits < 1 << 66 else "takes more than any file has"
        raise HeaderError(
            f"has a header in which {name} spans {stop - start} bytes, but {dtype} {str(tuple(shape))[:80]} {taken}"
        )
    return HeaderTensor(dtype, tuple(shape), start, stop)


def is_list_of_sizes(value: object) -> bool:
    """Whether `value` is a list of integers from 0 to 2^63 - 1."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object of `pairs`; HeaderError when a key occurs twice, since readers disagree on which one counts."""
    entries: dict[str, object] = {}
    for name, value in pairs:
        if name in entries:
            raise HeaderError(f"has a header in which {name!a:.80} occurs twice")
        entries[name] = value
    return entries
