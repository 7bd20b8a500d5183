"""What an export says: how far it is, and when it is done what it wrote and how long that took."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coreai_recipes.export.fragments import Port
from coreai_recipes.storage.chunks import Chunk

# called with what is being done, how much of it is done, and how much there is
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Signature:
    """What the callers of a function see."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    states: dict[str, Port]


@dataclass(frozen=True)
class ExportedPackage:
    """A package as it was written: its folder, what is in it, and the signatures of its functions."""

    path: Path
    chunk: Chunk
    signatures: dict[str, Signature]


@dataclass(frozen=True)
class Exported:
    """What an export wrote: digests by path from the folder that holds the packages, these in running order, seconds by
    step."""

    digests: dict[str, str]
    packages: tuple[ExportedPackage, ...]
    seconds: dict[str, float]
    converted: int
    cached: int


class Stopwatch:
    """Adds up the seconds of named steps: `with stopwatch("linking"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str) -> "Stopwatch":
        self.step = step
        return self

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.step] = self.seconds.get(self.step, 0.0) + time.perf_counter() - self.started
