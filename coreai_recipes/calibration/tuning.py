"""Palettes, scales and norms changed together, so that the whole model's next tokens are the checkpoint's.

Each matrix was fitted by itself before. Here its indices stay, and what they stand for follows the gradient of the KL
divergence from the checkpoint's own model, through the whole decoder (Adam, steps that fall along a cosine). Held are
two models in float32, the gradient of one matrix at a time, and what a backward pass keeps of two pieces of text.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coreai_recipes.calibration.kernels import sum_gradients
from coreai_recipes.calibration.passing import folded_decoder
from coreai_recipes.calibration.threads import Threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight, bind_weights
from coreai_recipes.decoder.model import Decoder, fill
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.base import axis_of_row
from coreai_recipes.storage.compression import FLOAT16, is_norm
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.float16 import FLOAT16_MAX
from coreai_recipes.storage.integers import Integers, largest_scale
from coreai_recipes.storage.palette import Palette

STEP = "tuning"
PIECE = 256  # tokens that are read from an empty state
TOGETHER = 2  # pieces of a step, however many threads there are
SEED = 20240301
RATE = 1e-3  # of a palette's mean size, at most, in a step
BETAS = 0.9, 0.98
WARM_UP = 5  # steps
LEAST_RATE = 0.05  # of the rate, in the last step

Progress = Callable[[str, int, int], None]


class Tuned(ABC):
    """A parameter whose `numbers` are tuned: `values` are the parameter as the program will have it.

    The numbers are those that were fitted and as many times their size as `change` says, rounded to float16. `most` is
    their largest magnitude.
    """

    def __init__(self, numbers: NDArray[np.float16], sizes: Tensor, most: Tensor) -> None:
        self._start, self._sizes, self._most = torch.from_numpy(numbers.astype(np.float32)), sizes, most
        self.change = torch.zeros_like(self._start)
        self.leaf = torch.zeros_like(self._start, requires_grad=True)  # gradients are asked for by it
        self.values = torch.empty(0)

    @property
    def numbers(self) -> Tensor:
        found = self._start + self._sizes * self.change
        return found.clamp(-self._most, self._most).half()

    @abstractmethod
    def write(self) -> None:
        """Bring `values` up to date."""

    @abstractmethod
    def gather(self, gradient: Tensor) -> Tensor:
        """The gradient of `change` by that of the values."""


class TunedPalette(Tuned):
    def __init__(self, fitted: Fitted, storage: Palette, shape: torch.Size) -> None:
        indices, palettes = fitted.read()
        width = fitted.shape[axis_of_row(fitted.shape)]
        self._group, self._rows = storage.group, shape.numel() // width
        palettes = palettes.reshape(-1, 1 << storage.bits)
        super().__init__(palettes, _mean_size(palettes), torch.tensor(FLOAT16_MAX))
        self._indices = storage.numbers(indices, fitted.shape).reshape(-1, width)  # of padding too
        self._of_all = torch.empty(len(self._indices), width)
        self.values = self._of_all[: self._rows].view(shape)
        self.write()

    def write(self) -> None:
        found = self.numbers.float().numpy()
        of_group = self._indices.reshape(len(found), -1)
        for group, palette in enumerate(found):
            np.take(palette, of_group[group], out=self._of_all.numpy().reshape(of_group.shape)[group], mode="clip")

    def gather(self, gradient: Tensor) -> Tensor:
        found = torch.zeros(self.change.shape, dtype=torch.float64)
        of_rows = gradient.reshape(self._rows, -1).contiguous()
        sum_gradients(of_rows.numpy(), self._indices, self._group, found.numpy())
        return found.float() * self._sizes


class TunedScales(Tuned):
    def __init__(self, fitted: Fitted, storage: Integers, shape: torch.Size) -> None:
        parts = fitted.read()
        width = fitted.shape[axis_of_row(fitted.shape)]
        scales = parts[1].reshape(math.prod(fitted.shape) // width, -1)
        levels = storage.levels(parts, fitted.shape).reshape(*scales.shape, -1)  # (rows, scales of one, weights)
        self._levels = torch.from_numpy(levels)
        most = largest_scale(np.abs(levels).max(-1).clip(1))
        super().__init__(scales, torch.from_numpy(np.abs(scales.astype(np.float32))), torch.from_numpy(most))
        self._rows = shape.numel() // width
        self._of_all = torch.empty(self._levels.shape)
        self.values = self._of_all[: self._rows].view(shape)
        self.write()

    def write(self) -> None:
        torch.mul(self._levels, self.numbers.float()[..., None], out=self._of_all)
        self._of_all.copy_(self._of_all.half())

    def gather(self, gradient: Tensor) -> Tensor:
        found = torch.zeros(self.change.shape)
        found[: self._rows] = (gradient.reshape(self._of_all[: self._rows].shape) * self._levels[: self._rows]).sum(-1)
        return found * self._sizes


class TunedNorm(Tuned):
    def __init__(self, weight: Tensor) -> None:
        numbers = weight.half()
        super().__init__(numbers.numpy(), numbers.float().abs(), torch.tensor(FLOAT16_MAX))
        self.values = torch.empty(weight.shape)
        self.write()

    def write(self) -> None:
        self.values.copy_(self.numbers)

    def gather(self, gradient: Tensor) -> Tensor:
        return gradient * self._sizes


class _Values(torch.autograd.Function):
    """The values of what is tuned, whose gradient is brought down to the few numbers that they are made of."""

    @staticmethod
    def forward(context: Any, leaf: Tensor, tuned: Tuned) -> Tensor:
        context.tuned = tuned
        return tuned.values.view_as(tuned.values)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.tuned.gather(gradient), None


@dataclass(frozen=True)
class Student:
    """A decoder with the values of what is tuned in the places of its parameters."""

    decoder: Decoder
    tuned: Mapping[str, Tuned]

    @classmethod
    def of(cls, recipe: Recipe, teacher: Decoder, tuned: Mapping[str, Tuned]) -> "Student":
        """What is not tuned is the teacher's own."""
        decoder = folded_decoder(recipe)
        for name, parameter in teacher.named_parameters():
            owner, leaf = _place(decoder, name)
            setattr(owner, leaf, parameter)
            if name in tuned:
                del owner._parameters[leaf]
        return cls(decoder, tuned)

    def gradients(self, ids: Sequence[int], theirs: Tensor) -> list[Tensor]:
        """Of the mean KL divergence from logits (1, S, V), by what is tuned."""
        for name, each in self.tuned.items():
            owner, leaf = _place(self.decoder, name)
            setattr(owner, leaf, _Values.apply(each.leaf, each))  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            ours = self.decoder(torch.tensor([list(ids)])).log_softmax(-1)
            loss = (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours)).sum() / len(ids)
            leaves = [each.leaf for each in self.tuned.values()]
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [torch.zeros_like(one) if own is None else own for one, own in zip(leaves, found, strict=True)]


def tune(
    recipe: Recipe,
    checkpoint: Checkpoint,
    windows: Sequence[Sequence[int]],
    fitted: Mapping[str, Fitted],
    folder: Path,
    steps: int,
    threads: Threads,
    progress: Progress | None = None,
) -> dict[str, Fitted]:
    """What was `fitted`, and the norms, after so many steps on the text, in files of `folder`; the same for any number
    of threads."""
    teacher = folded_decoder(recipe)
    weights = bind_weights(teacher, checkpoint)
    fill(teacher, lambda name: weights[name].read())
    tuned = dict(_tuned(teacher, fitted))
    changes = [each.change for each in tuned.values()]
    optimiser = torch.optim.Adam(changes, lr=RATE, betas=BETAS, eps=1e-10, foreach=False)
    pieces = _in_turn(windows)
    students = [Student.of(recipe, teacher, tuned) for _ in range(TOGETHER)]

    def learn(number: int) -> list[Tensor]:
        ids = now[number]
        with torch.no_grad():
            theirs = teacher(torch.tensor([list(ids)]))
        return students[number].gradients(ids, theirs)

    for step in range(steps):
        now = [next(pieces) for _ in range(TOGETHER)]
        of_pieces = list(threads.map(learn, range(TOGETHER)))
        for change, *found in zip(changes, *of_pieces, strict=True):
            change.grad = torch.stack(found).mean(0)
        for group in optimiser.param_groups:
            group["lr"] = RATE * rate_at(step, steps)
        optimiser.step()
        threads.run([each.write for each in tuned.values()])
        if progress is not None:
            progress(STEP, step + 1, steps)
    return {name: _kept(name, each, weights, fitted, folder) for name, each in tuned.items()}


def rate_at(step: int, steps: int) -> float:
    """Of the highest rate: rising at first, then falling along a cosine."""
    falling = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (LEAST_RATE + (1 - LEAST_RATE) * falling)


def _tuned(decoder: Decoder, fitted: Mapping[str, Fitted]) -> Iterator[tuple[str, Tuned]]:
    for name, parameter in decoder.named_parameters():
        if is_norm(name):
            yield name, TunedNorm(parameter.detach())
        elif name in fitted:
            match fitted[name].storage:
                case Palette() as storage:
                    yield name, TunedPalette(fitted[name], storage, parameter.shape)
                case Integers() as storage:
                    yield name, TunedScales(fitted[name], storage, parameter.shape)


def _kept(name: str, tuned: Tuned, weights: Mapping[str, Weight], fitted: Mapping[str, Fitted], folder: Path) -> Fitted:
    numbers = tuned.numbers.numpy()
    if name in fitted:
        return fitted[name].replace(1, numbers)
    return Fitted.write(folder, weights[name].tensor, tuple(numbers.shape), FLOAT16, [(0, numbers)])


def _in_turn(windows: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
    """Pieces of the text in an order of chance, all of them before one comes again."""
    pieces = [window[first : first + PIECE] for window in windows for first in range(0, len(window), PIECE)]
    pieces = [piece for piece in pieces if len(piece) == min(PIECE, len(windows[0]))]
    generator = torch.Generator().manual_seed(SEED)
    while True:
        for number in torch.randperm(len(pieces), generator=generator).tolist():
            yield pieces[number]


def _place(decoder: Decoder, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return decoder.get_submodule(owner), leaf


def _mean_size(palettes: NDArray[np.float16]) -> Tensor:
    """Of each palette, the root of the mean square of its entries, (groups, 1)."""
    return torch.from_numpy(palettes.astype(np.float32)).square().mean(1, keepdim=True).sqrt()
