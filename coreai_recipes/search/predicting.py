"""For each matrix of a recipe and each form: its bits, and the KL divergence that it is predicted to cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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


def predict(
    recipe: Recipe,
    checkpoint: Checkpoint,
    windows: Sequence[Sequence[int]],
    kept: Kept,
    threads: Threads,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[Matrix]:
    """Every matrix that can be compressed, in a package's order; fitted to the windows where the recipe has a text."""
    encode = _Encoder(kept, threads, recipe.compress is not None and recipe.compress.calibration is not None)
    backward = Backward(folded_decoder(recipe), checkpoint, windows, on_progress)
    shapes = {
        name: shape
        for name, shape in stored_parameters([backward.decoder]).shapes.items()
        if is_compressible(name, shape) and name in backward.weights
    }
    found: dict[str, Matrix] = {}
    waiting: dict[str, Curvature] = {}
    for _, curvatures in backward.run():
        for name, curvature in curvatures.items():
            if name == EMBEDDING:
                waiting[name] = curvature  # it is looked up too, which the front says
            elif name in shapes:
                found[name] = _matrix(name, shapes[name], backward, curvature, encode)
    if EMBEDDING in shapes:
        found[EMBEDDING] = _matrix(EMBEDDING, shapes[EMBEDDING], backward, waiting.get(EMBEDDING), encode)
    return [found[name] for name in shapes if name in found]


def _matrix(name: str, shape: Shape, backward: Backward, curvature: Curvature | None, encode: "_Encoder") -> Matrix:
    weight = backward.weights[name]
    original = weight.read().float()
    statistics = None
    if curvature is not None and encode.calibrated:
        statistics = curvature.statistics(looked_up=name == EMBEDDING)
    options = []
    for number, form in candidates_for(shape):
        if form.storage is None:
            options.append(Option(number, 0.0, 16 * prod(shape)))
            continue
        storage = form.storage.fitted(shape)
        stored = encode(weight, shape, storage, statistics).reshape(-1, *original.shape[1:])[: len(original)]
        encode.kept.write(name, number, stored)
        error = stored - original
        cost = 0.0 if curvature is None else curvature.cost(error, backward.positions)
        cost += backward.lookup_cost(error) if name == EMBEDDING else 0.0
        options.append(Option(number, cost, 8 * storage.bytes(shape)))
    return Matrix(shown_name(name), prod(shape), tuple(options))


@dataclass(frozen=True)
class _Encoder:
    """Encodes matrices as a build of the recipe does, and gives them back."""

    kept: Kept
    threads: Threads
    calibrated: bool

    def __call__(self, weight: Weight, shape: Shape, storage: Storage, statistics: Statistics | None) -> Tensor:
        parts: list[list[NDArray[Any]]] = [[] for _ in storage.parts(shape)]
        if statistics is not None and storage.is_coarse:
            values = fit(weight.blocks(), shape, storage, statistics, weight.tensor, self.threads)
        else:
            values = storage.encode(weight.blocks(), shape, weight.tensor)
        for part, found in values:
            parts[part].append(found.reshape(-1).copy())
        return storage.decode([np.concatenate(each) for each in parts], shape)
