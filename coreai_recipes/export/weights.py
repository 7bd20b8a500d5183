"""weight.bin: Core ML's blob storage, laid out before a single weight is read, then streamed.

The format (MILBlob's StorageFormat.hpp, in coremltools): a header of 64 bytes with the number of blobs and version 2;
then for each blob a record of 64 bytes (sentinel, data type, size, offset of the data), and the data, both aligned to
64. coremltools' own writer takes a tensor whole; this one takes it in blocks, so that a table of any size costs a few
MiB, and a test holds the two to the same bytes.
"""

import hashlib
import struct
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
VERSION = 2
FLOAT16 = 1
HEADER = struct.Struct("<II56x")
RECORD = struct.Struct("<IIQQQ32x")


@dataclass(frozen=True)
class Blob:
    """A float16 tensor's place in weight.bin: `offset` is that of its record, which is what a program refers to."""

    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return 2 * prod(self.shape)


class WeightLayout:
    """The order and offsets of the blobs, settled as the program asks for them."""

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}
        self.end = HEADER.size

    def place(self, name: str, shape: tuple[int, ...]) -> int:
        """The offset of tensor `name`; the same tensor in another shape (a tied table) is the same blob."""
        blob = self.blobs.get(name)
        if blob is None:
            blob = self.blobs[name] = Blob(shape, _align(self.end))
            self.end = blob.offset + RECORD.size + blob.size
        elif prod(blob.shape) != prod(shape):
            raise RuntimeError(f"{name} is used as {blob.shape} and as {shape}")
        return blob.offset


def write_weights(
    path: Path, layout: WeightLayout, blocks: Mapping[str, Iterable[NDArray[np.float16]]]
) -> Generator[tuple[str, int], None, str]:
    """Write every blob of `layout`, block by block; gives (name, bytes written) after each block.

    The generator's return value is the sha256 of the whole file, taken of each block while it is being written.
    """
    with _HashedFile(path) as file:
        file.write(HEADER.pack(len(layout.blobs), VERSION))
        position = HEADER.size
        for name, blob in layout.blobs.items():
            file.write(bytes(blob.offset - position))
            file.write(RECORD.pack(SENTINEL, FLOAT16, blob.size, blob.offset + RECORD.size, 0))
            written = 0
            for block in blocks[name]:
                file.write(block.reshape(-1).view(np.uint8).data)
                written += block.nbytes
                yield name, block.nbytes
            if written != blob.size:
                raise RuntimeError(f"{name}: {written} bytes came, {blob.size} were laid out")
            position = blob.offset + RECORD.size + blob.size
    return file.digest.hexdigest()


def write_table(
    path: Path, name: str, size: int, blocks: Iterable[NDArray[np.float16]]
) -> Generator[tuple[str, int], None, str]:
    """Write a table of `size` bytes row after row, without a header; yields and returns as `write_weights`."""
    written = 0
    with _HashedFile(path) as file:
        for block in blocks:
            file.write(block.reshape(-1).view(np.uint8).data)
            written += block.nbytes
            yield name, block.nbytes
    if written != size:
        raise RuntimeError(f"{name}: {written} bytes came, {size} were expected")
    return file.digest.hexdigest()


class _HashedFile:
    """A new file whose `digest` is taken of each block on another thread, while the block is being written."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._path = path

    def __enter__(self) -> Self:
        self._file = self._path.open("wb", buffering=0)
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="digest")
        return self

    def write(self, data: bytes | memoryview) -> None:
        hashing = self._hasher.submit(self.digest.update, data)
        while len(data):
            data = data[self._file.write(data) :]
        hashing.result()  # the next block may lie in the same buffer

    def __exit__(self, *_: object) -> None:
        self._hasher.shutdown()
        self._file.close()


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
