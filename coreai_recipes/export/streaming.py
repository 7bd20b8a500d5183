"""Weights and tables on their way from a checkpoint into files, in blocks: a table of any size costs a few MiB."""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from coreai_recipes.export.reporting import Progress
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.weights.binding import Binding

SWITCH_SECONDS = 1e-4
SYNCED_BYTES = 128 << 20  # are brought to disk at once, while the next are written
# The number of a parameter's part, and values of it that come next.
Encoded = tuple[int, NDArray[Any]]
# Gives a name and the bytes written of it after each block, and in the end the sha256 of the file.
Writing = Generator[tuple[str, int], None, str]


def encode_parameter(binding: Binding, storage: Storage, shape: Shape, fitted: Fitted | None) -> Iterator[Encoded]:
    """The parts of a parameter, as they were fitted or as the storage makes them; nothing is read before the first is
    asked for."""
    if fitted is not None:
        yield from fitted.encoded(binding.rewrite.factor)
    else:
        yield from storage.encode(binding.blocks(), shape, binding.tensor)


@dataclass(frozen=True)
class FileStream:
    """A file that is written in blocks, and the bytes of values that it will hold."""

    path: Path
    bytes: int
    writing: Writing


def run_streams(
    streams: Sequence[FileStream], stop: threading.Event, progress: Progress | None
) -> tuple[dict[Path, str], float]:
    """Write the files one after the other, until `stop` is set; the sha256 of each, and the seconds taken.

    Torch works on one thread meanwhile: a second one would spin beside the conversion, and takes no less time.
    Threads change more often: of a block each does a millisecond's work without the interpreter, and would wait five
    for whoever links.
    """
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_SECONDS)
    started = time.perf_counter()
    try:
        return dict(_write(streams, stop, progress)), time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(interval)


def _write(
    streams: Sequence[FileStream], stop: threading.Event, progress: Progress | None
) -> Iterator[tuple[Path, str]]:
    total, done = sum(stream.bytes for stream in streams), 0
    for stream in streams:
        while not stop.is_set():
            try:
                _, size = next(stream.writing)
            except StopIteration as end:
                yield stream.path, str(end.value)
                break
            done += size
            if progress:
                progress("weights", done, total)


def write_table(path: Path, name: str, size: int, encoded: Iterable[Encoded]) -> Writing:
    """Write a table of `size` bytes row after row, without a header."""
    written = 0
    with HashedFile(path) as file:
        for _, block in encoded:
            file.write(block.reshape(-1).view(np.uint8).data)
            written += block.nbytes
            yield name, block.nbytes
    if written != size:
        raise RuntimeError(f"{name}: {written} bytes came, {size} were expected")
    return file.digest.hexdigest()


class HashedFile:
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
