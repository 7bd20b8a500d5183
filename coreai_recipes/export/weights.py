"""weight.bin: Core ML's blob storage, laid out before a single weight is read, then streamed.

The format (MILBlob's StorageFormat.hpp, in coremltools): a header of 64 bytes with the number of blobs and version 2;
then for each blob a record of 64 bytes (sentinel, data type, size, offset of the data), and the data, both aligned to
64. coremltools' own writer takes a tensor whole; this one takes it in blocks, so that a table of any size costs a few
MiB, and a test holds the two to the same bytes.
"""

import hashlib
import os
import struct
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.storage.base import Part, Shape, Storage
from coreai_recipes.storage.compression import FLOAT16

ALIGNMENT = 64
SYNCED_BYTES = 128 << 20  # are brought to disk at once, while the next are written
SENTINEL = 0xDEADBEEF
VERSION = 2
DATA_TYPES = {
    "float16": 1, "uint8": 3, "int8": 4, "int4": 8, "uint1": 9, "uint2": 10, "uint4": 11, "uint3": 12, "uint6": 13
}  # fmt: skip
HEADER = struct.Struct("<II56x")
RECORD = struct.Struct("<IIQQQ32x")


# The number of a parameter's part, and values of it that come next.
Encoded = tuple[int, NDArray[Any]]


@dataclass(frozen=True)
class Blob:
    """A part's place in weight.bin: `offset` is that of its record, which is what a program refers to."""

    part: Part
    offset: int

    @property
    def end(self) -> int:
        return self.offset + RECORD.size + self.part.bytes


@dataclass(frozen=True)
class Placed:
    """A parameter's blobs in weight.bin, one for each part of its storage."""

    shape: Shape
    storage: Storage
    blobs: tuple[Blob, ...]

    @property
    def bytes(self) -> int:
        return sum(blob.part.bytes for blob in self.blobs)


class WeightLayout:
    """The order and offsets of the blobs, settled as the program asks for them."""

    def __init__(self) -> None:
        self.placed: dict[str, Placed] = {}
        self.end = HEADER.size

    def __repr__(self) -> str:
        """All that a program can say of its weights."""
        return "\n".join(f"{name} {p.shape} {p.storage} {p.blobs}" for name, p in self.placed.items())

    def place(self, name: str, shape: Shape, storage: Storage = FLOAT16) -> Placed:
        """Where tensor `name` lies; the same tensor in another shape (a tied table) is the same blobs, and stays in the
        storage that it was given first."""
        placed = self.placed.get(name)
        if placed is None:
            blobs = []
            for part in storage.parts(shape):
                blobs.append(Blob(part, _align(self.end)))
                self.end = blobs[-1].end
            placed = self.placed[name] = Placed(shape, storage, tuple(blobs))
        elif prod(placed.shape) != prod(shape):
            raise RuntimeError(f"{name} is used as {placed.shape} and as {shape}")
        return placed


def write_weights(
    path: Path, layout: WeightLayout, encoded: Mapping[str, Iterable[Encoded]]
) -> Generator[tuple[str, int], None, str]:
    """Write every blob of `layout`, block by block; gives (name, bytes written) after each block.

    The generator's return value is the sha256 of the whole file, taken of each block while it is being written.
    """
    with _HashedFile(path) as file:
        file.write(HEADER.pack(sum(len(placed.blobs) for placed in layout.placed.values()), VERSION))
        position = HEADER.size
        for name, placed in layout.placed.items():
            values = iter(encoded[name])
            following = next(values, None)
            for number, blob in enumerate(placed.blobs):
                file.write(bytes(blob.offset - position))
                kind, start = DATA_TYPES[blob.part.dtype], blob.offset + RECORD.size
                file.write(RECORD.pack(SENTINEL, kind, blob.part.bytes, start, blob.part.padding_bits))
                written = 0
                while following is not None and following[0] == number:
                    file.write(following[1].reshape(-1).view(np.uint8).data)
                    written += following[1].nbytes
                    yield name, following[1].nbytes
                    following = next(values, None)
                if written != blob.part.bytes:
                    raise RuntimeError(f"{name}: {written} bytes came, {blob.part.bytes} were laid out")
                position = blob.end
            if following is not None:
                raise RuntimeError(f"{name}: more came than was laid out")
    return file.digest.hexdigest()


def write_table(path: Path, name: str, size: int, encoded: Iterable[Encoded]) -> Generator[tuple[str, int], None, str]:
    """Write a table of `size` bytes row after row, without a header; yields and returns as `write_weights`."""
    written = 0
    with _HashedFile(path) as file:
        for _, block in encoded:
            file.write(block.reshape(-1).view(np.uint8).data)
            written += block.nbytes
            yield name, block.nbytes
    if written != size:
        raise RuntimeError(f"{name}: {written} bytes came, {size} were expected")
    return file.digest.hexdigest()


class _HashedFile:
    """A new file whose `digest` is taken of each block on another thread, while it is written and the next one is made.

    A third thread brings to disk what is written, part by part: the file ends there much sooner than by one `fsync`.
    """

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._path = path

    def __enter__(self) -> Self:
        self._file = self._path.open("wb", buffering=0)
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._hashing: Future[None] | None = None
        self._syncing: Future[None] | None = None
        self._unsynced = 0
        return self

    def write(self, data: bytes | memoryview) -> None:
        if self._hashing is not None:
            self._hashing.result()  # whose buffer comes again with the next block
        self._hashing = self._hasher.submit(self.digest.update, data)
        self._unsynced += len(data)
        while len(data):
            data = data[self._file.write(data) :]
        if self._unsynced > SYNCED_BYTES and (self._syncing is None or self._syncing.done()):
            self._syncing, self._unsynced = self._syncer.submit(os.fsync, self._file.fileno()), 0

    def __exit__(self, *_: object) -> None:
        self._hasher.shutdown()
        self._syncer.shutdown()
        self._file.close()


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
