"""Grouped palettes: a weight is the number of one of 2^bits float16 values, which a group of output channels shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import lcm, prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.storage.base import Part, Shape, Storage, axis_of_row, join_rows
from coreai_recipes.storage.clustering import choose_entries, nearest_entries
from coreai_recipes.storage.float16 import to_float16
from coreai_recipes.storage.packing import BITS_IN_A_BYTE, pack_bits, unpack_bits

if TYPE_CHECKING:
    from torch import Tensor

# Groups are clustered so many weights at a time: their sums stay in the cache, and memory is bounded.
BATCH_WEIGHTS = 1 << 21
FINEST = 6  # bits of a palette that is fitted to a text: with 8 nothing is left to be won


@dataclass(frozen=True)
class Palette(Storage):
    """`group` rows that follow one another share a palette: tokens of a table, outputs of a matrix or of one expert."""

    bits: int
    group: int

    kind: ClassVar[str] = "palettize"
    operation: ClassVar[str | None] = "constexpr_lut_to_dense"

    def __str__(self) -> str:
        return f"palettes of {self.bits} bits for {self.group} channels"

    @property
    def is_coarse(self) -> bool:
        return self.bits <= FINEST

    def fitted(self, shape: Shape) -> Palette:
        """With the largest group that divides the rows, or rows would be left over."""
        rows = shape[axis_of_row(shape) - 1]
        return replace(self, group=next(size for size in range(min(self.group, rows), 0, -1) if rows % size == 0))

    def misfit(self, shape: Shape) -> str | None:
        rows = shape[axis_of_row(shape) - 1]
        size = self.fitted(shape).group
        return None if size in (self.group, rows) else f"groups of {self.group} do not divide {rows} channels"

    def together(self, shape: Shape) -> int:
        return self.group if axis_of_row(shape) == 1 else 1

    def parts(self, shape: Shape) -> tuple[Part, ...]:
        axis = axis_of_row(shape)
        groups = [size // self.group if i == axis - 1 else size if i < axis - 1 else 1 for i, size in enumerate(shape)]
        return Part("indices", f"uint{self.bits}", shape), Part("lut", "float16", (*groups, 1 << self.bits, 1))

    def encode(self, blocks: Iterable[Tensor], shape: Shape, tensor: str) -> Iterator[tuple[int, NDArray[Any]]]:
        width = shape[axis_of_row(shape)]
        missing = prod(shape) // width
        # whole bytes of indices come of eight rows, whatever their width
        step = lcm(self.group, BITS_IN_A_BYTE)
        step *= max(1, BATCH_WEIGHTS // (step * width))
        palettes: list[NDArray[np.float16]] = []
        rounded = (to_float16(block, tensor).numpy().reshape(-1, width) for block in blocks)
        for rows in join_rows(rounded, step, missing):
            weights = rows.reshape(-1, self.group * width)  # (groups, weights of each)
            entries = choose_entries(weights, 1 << self.bits)
            palettes.append(entries)
            yield 0, pack_bits(nearest_entries(weights, entries).reshape(-1), self.bits)
        yield 1, np.concatenate(palettes)

    def decode(self, parts: list[NDArray[Any]], shape: Shape) -> Tensor:
        import torch

        width = shape[axis_of_row(shape)]
        entries = parts[1].reshape(-1, 1 << self.bits)
        numbers = self.numbers(parts[0], shape).reshape(len(entries), self.group * width)
        found = np.empty(numbers.shape, np.float16)
        for group, palette in enumerate(entries):
            np.take(palette, numbers[group], out=found[group], mode="clip")  # `raise` would make a copy
        return torch.from_numpy(found.reshape(shape)).float()

    def numbers(self, packed: NDArray[Any], shape: Shape) -> NDArray[np.uint8]:
        """Of the entry that each weight is, flat."""
        return unpack_bits(packed, self.bits, prod(shape))
