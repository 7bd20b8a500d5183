"""For each matrix of a recipe and each form: its bits, and the KL divergence that it is predicted to cost."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.calibration.backward import Backward
from coreai_recipes.calibration.curvature import Curvature
from coreai_recipes.calibration.fitting import fit
from coreai_recipes.calibration.passing import folded_decoder
from coreai_recipes.calibration.statistics import Statistics
from coreai_recipes.calibration.threads import Threads
from coreai_recipes.calibration.threads import threads as take_threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.search.candidates import candidates_for
from coreai_recipes.search.choosing import Matrix, Option
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.compression import is_compressible, shown_name
from coreai_recipes.storage.parameters import stored_parameters

EMBEDDING = "embedding.weight"


@dataclass(frozen=True)
class Kept:
    """Matrices as each form gives them back, float16, in files of `folder`."""

    folder: Path

    def write(self, name: str, form: int, values: Tensor) -> None:
        np.save(self._path(name, form), values.half().numpy())

    def weights(self, originals: Mapping[str, Weight], choice: Mapping[str, int]) -> dict[str, Weight]:
        """All parameters, those of `choice` in their form."""
        found: dict[str, Weight] = dict(originals)
        return found | {name: Saved(name, self._path(name, form)) for name, form in choice.items()}

    def has(self, name: str, form: int) -> bool:
        return self._path(name, form).exists()

    def _path(self, name: str, form: int) -> Path:
        return self.folder / f"{name}.{form}.npy"


@dataclass(frozen=True)
class Saved:
    """A parameter in a file."""

    tensor: str
    path: Path

    def blocks(self) -> Iterator[Tensor]:
        yield self.read()

    def read(self) -> Tensor:
        return torch.from_numpy(np.load(self.path).astype(np.float32))

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        values = np.load(self.path, mmap_mode="r")
        return torch.from_numpy(values[list(rows)].astype(np.float32))


@dataclass(frozen=True)
class Job:
    """All that the forms of one matrix are measured with, wherever that is done."""

    name: str
    shape: Shape
    tensor: str
    original: Tensor
    curvature: Curvature | None
    statistics: Statistics | None
    positions: int


Measured = Iterable[tuple[Option, Tensor | None]]  # of each form, with the matrix as it gives it back
Measuring = Callable[[Iterator[Job]], Iterator[tuple[str, Measured]]]  # jobs as they come -> by name, in order


def predict(
    recipe: Recipe,
    checkpoint: Checkpoint,
    windows: Sequence[Sequence[int]],
    kept: Kept,
    threads: Threads,
    on_progress: Callable[[str, int, int], None] | None = None,
    measuring: Measuring | None = None,
) -> list[Matrix]:
    """Every matrix that can be compressed, in a package's order; fitted to the windows where the recipe has a text.

    `measuring` does that for all matrices but the table; by default one after the other, on `threads`.
    """
    calibrated = recipe.compress is not None and recipe.compress.calibration is not None
    backward = Backward(folded_decoder(recipe), checkpoint, windows, Curvature.of, on_progress)
    shapes = {
        name: shape
        for name, shape in stored_parameters([backward.decoder]).shapes.items()
        if is_compressible(name, shape) and name in backward.weights
    }

    def job(name: str, curvature: Curvature | None) -> Job:
        weight, statistics = backward.weights[name], None
        if curvature is not None and calibrated:
            statistics = curvature.statistics(looked_up=name == EMBEDDING)
        original = weight.read().float()
        return Job(name, shapes[name], weight.tensor, original, curvature, statistics, backward.positions)

    waiting: dict[str, Curvature] = {}

    def jobs() -> Iterator[Job]:
        for _, curvatures in backward.run():
            for name, curvature in curvatures.items():
                if name == EMBEDDING:
                    waiting[name] = curvature  # it is looked up too, which the front says
                elif name in shapes:
                    yield job(name, curvature)

    def here(given: Iterator[Job]) -> Iterator[tuple[str, Measured]]:
        for each in given:
            yield each.name, measure(each, threads)

    found = {name: _matrix(name, shapes[name], forms, kept) for name, forms in (measuring or here)(jobs())}
    if EMBEDDING in shapes:
        forms = measure(job(EMBEDDING, waiting.get(EMBEDDING)), threads, backward.lookup_cost)
        found[EMBEDDING] = _matrix(EMBEDDING, shapes[EMBEDDING], forms, kept)
    return [found[name] for name in shapes if name in found]


def measure(
    job: Job, threads: Threads, looked_up: Callable[[Tensor], float] = lambda error: 0.0
) -> Iterator[tuple[Option, Tensor | None]]:
    """What each form of a matrix costs, and the matrix as it gives it back; `looked_up` is what it costs beside."""
    weight = _Held(job.tensor, job.original)
    for number, form in candidates_for(job.shape):
        if form.storage is None:
            yield Option(number, 0.0, 16 * prod(job.shape)), None
            continue
        storage = form.storage.fitted(job.shape)
        encoded = _encode(weight, job.shape, storage, job.statistics, threads)
        stored = encoded.reshape(-1, *job.original.shape[1:])[: len(job.original)]
        error = stored - job.original
        cost = 0.0 if job.curvature is None else job.curvature.cost(error, job.positions)
        yield Option(number, cost + looked_up(error), 8 * storage.bytes(job.shape)), stored


def measure_all(job: Job) -> list[tuple[Option, Tensor | None]]:
    """As `measure`, all at once and on threads of its own: a task somewhere else."""
    with take_threads() as threads:
        return list(measure(job, threads))


def _matrix(name: str, shape: Shape, forms: Measured, kept: Kept) -> Matrix:
    options = []
    for option, stored in forms:
        options.append(option)
        if stored is not None:
            kept.write(name, option.form, stored)
    return Matrix(shown_name(name), prod(shape), tuple(options))


@dataclass(frozen=True)
class _Held:
    """A parameter in memory."""

    tensor: str
    values: Tensor

    def blocks(self) -> Iterator[Tensor]:
        yield self.values


def _encode(weight: _Held, shape: Shape, storage: Storage, statistics: Statistics | None, threads: Threads) -> Tensor:
    """A matrix as a build of the recipe encodes it, given back."""
    parts: list[list[NDArray[Any]]] = [[] for _ in storage.parts(shape)]
    if statistics is not None and storage.is_coarse:
        values = fit(weight.blocks(), shape, storage, statistics, weight.tensor, threads)
    else:
        values = storage.encode(weight.blocks(), shape, weight.tensor)
    for part, found in values:
        parts[part].append(found.reshape(-1).copy())
    return storage.decode([np.concatenate(each) for each in parts], shape)
