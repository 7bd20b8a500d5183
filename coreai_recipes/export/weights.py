"""weight.bin: Core ML's blob storage, streamed to where `storage.layout` has each blob.

coremltools' own writer takes a tensor whole; this one takes it in blocks, so that a table of any size costs a few MiB,
and a test holds the two to the same bytes.
"""

import hashlib
import os
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.storage.layout import DATA_TYPES, HEADER, RECORD, SENTINEL, VERSION, WeightLayout

SYNCED_BYTES = 128 << 20  # are brought to disk at once, while the next are written

# The number of a parameter's part, and values of it that come next.
Encoded = tuple[int, NDArray[Any]]


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
