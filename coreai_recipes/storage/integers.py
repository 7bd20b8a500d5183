"""Four or eight bits a number, and a scale for each channel or block of one: a weight is (data - offset) * scale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.storage.base import Part, Shape, Storage, axis_of_row, join_rows
from coreai_recipes.storage.float16 import FLOAT16_MAX, PIECE_ELEMENTS, check_range
from coreai_recipes.storage.packing import BITS_IN_A_BYTE, pack_bits, unpack_bits

if TYPE_CHECKING:
    from torch import Tensor

# A scale of the largest magnitude is seldom the best of few levels: what is beyond a smaller one is cut off.
SHARES = np.array([1, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4], np.float32)


@dataclass(frozen=True)
class Integers(Storage):
    """A channel is a row: all weights of one output, of one token in a table, of one output of one expert.

    `block` weights of a row that follow one another have a scale, None: all of them. With `symmetric` no offset is
    stored, and data are signed.
    """

    bits: int
    block: int | None = None
    symmetric: bool = True

    operation: ClassVar[str | None] = "constexpr_blockwise_shift_scale"

    @property
    def kind(self) -> str:  # type: ignore[override]
        return f"int{self.bits}"

    def __str__(self) -> str:
        scales = "per channel" if self.block is None else f"for blocks of {self.block}"
        return f"int{self.bits} {scales}" + ("" if self.symmetric else " with offsets")

    @property
    def is_coarse(self) -> bool:
        return self.bits < BITS_IN_A_BYTE

    @property
    def ends(self) -> tuple[int, int]:
        """The least number and the largest."""
        high = (1 << self.bits - self.symmetric) - 1
        return (-high - 1 if self.symmetric else 0), high

    def fitted(self, shape: Shape) -> Integers:
        """With the largest block that divides a row. Rows that only much smaller ones divide have a scale each: those
        of small blocks would outweigh what they gain."""
        if self.block is None:
            return self
        width = shape[axis_of_row(shape)]
        size = next(size for size in range(min(self.block, width), 0, -1) if width % size == 0)
        return replace(self, block=size if 2 * size >= self.block and size < width else None)

    def misfit(self, shape: Shape) -> str | None:
        width = shape[axis_of_row(shape)]
        fits = self.block is None or width <= self.block or width % self.block == 0
        return None if fits else f"blocks of {self.block} do not divide a channel of {width}"

    def parts(self, shape: Shape) -> tuple[Part, ...]:
        axis = axis_of_row(shape)
        count = 1 if self.block is None else shape[axis] // self.block
        scales = tuple(count if i == axis else size for i, size in enumerate(shape))
        if self.symmetric:
            return Part("data", f"int{self.bits}", shape), Part("scale", "float16", scales)
        kind = f"uint{self.bits}"
        return Part("data", kind, shape), Part("scale", "float16", scales), Part("offset", kind, scales)

    def encode(self, blocks: Iterable[Tensor], shape: Shape, tensor: str) -> Iterator[tuple[int, NDArray[Any]]]:
        width = shape[axis_of_row(shape)]
        missing = prod(shape) // width
        # whole bytes of data come of eight rows, whatever their width
        step = BITS_IN_A_BYTE * max(1, PIECE_ELEMENTS // (BITS_IN_A_BYTE * width))
        scales: list[NDArray[np.float16]] = []
        offsets: list[NDArray[np.uint8]] = []
        for rows in join_rows(_checked(blocks, width, tensor), step, missing):
            data, scale, offset = self.quantize(rows)
            scales.append(scale)
            offsets.append(offset)
            yield 0, pack_bits(data.reshape(-1), self.bits)
        yield 1, np.concatenate(scales).reshape(-1)
        if not self.symmetric:
            yield 2, pack_bits(np.concatenate(offsets).reshape(-1), self.bits)

    def quantize(
        self, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
        """Data (rows, width) as stored, two's complement where symmetric; scales and offsets (rows, scales of a row).

        What is whole numbers times a scale already, as a checkpoint's that was quantised in such blocks, is given back
        exactly. Of 4 bits the scale is that of several with the least squared error, a column's as important as
        `importance` (width,) says.
        """
        from coreai_recipes.storage.kernels import quantize_blocks

        size = rows.shape[1] if self.block is None else self.block
        blocks = np.ascontiguousarray(rows).reshape(-1, size)
        shares = SHARES if self.bits < BITS_IN_A_BYTE else SHARES[:1]
        scales, offsets = self.candidates(blocks, shares)
        counted = np.ones(rows.shape[1], np.float32) if importance is None else importance
        low, high = self.ends
        scales, offsets = _with_grids(blocks, low, high, scales, offsets)
        data, chosen = np.empty(blocks.shape, np.uint8), np.empty(len(blocks), np.int64)
        quantize_blocks(blocks, counted.reshape(-1, size), scales, offsets, low, high, data, chosen)
        data &= np.uint8((1 << self.bits) - 1)
        at, shape = (np.arange(len(blocks)), chosen), (len(rows), -1)
        scale, offset = scales[at].astype(np.float16), offsets[at].astype(np.uint8)
        return data.reshape(rows.shape), scale.reshape(shape), offset.reshape(shape)

    def candidates(
        self, blocks: NDArray[np.float32], shares: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scales, all of float16, and offsets to try for each block, (blocks, shares); the first cuts nothing off."""
        if self.symmetric:
            levels = (1 << self.bits - 1) - 1
            peaks = np.abs(blocks).max(1)
            scales = np.minimum(_scales(peaks[:, None] * shares, levels), largest_scale(np.array([levels], np.float32)))
            return scales, np.zeros_like(scales)
        levels = (1 << self.bits) - 1
        lowest, highest = np.minimum(blocks.min(1), 0)[:, None], np.maximum(blocks.max(1), 0)[:, None]
        scales = _scales((highest - lowest) * shares, levels)
        return scales, np.clip(np.rint(-lowest * shares / scales), 0, levels)

    def decode(self, parts: list[NDArray[Any]], shape: Shape) -> Tensor:
        import torch

        scale = parts[1].reshape(self.parts(shape)[1].shape).astype(np.float32)
        axis = axis_of_row(shape)
        found = self.levels(parts, shape) * scale.repeat(shape[axis] // scale.shape[axis], axis)
        return torch.from_numpy(found.astype(np.float16)).float()

    def levels(self, parts: list[NDArray[Any]], shape: Shape) -> NDArray[np.float32]:
        """What scales are multiplied by, of `shape`: data less offsets."""
        described, axis = self.parts(shape), axis_of_row(shape)
        data = self._numbers(parts[0], described[0].shape)
        if self.symmetric:
            return data
        size = shape[axis] // described[2].shape[axis]
        return data - self._numbers(parts[2], described[2].shape).repeat(size, axis)

    def _numbers(self, packed: NDArray[Any], shape: Shape) -> NDArray[np.float32]:
        values = (
            unpack_bits(packed.reshape(-1).view(np.uint8), self.bits, prod(shape)).reshape(shape).astype(np.float32)
        )
        if self.symmetric:
            values[values >= 1 << self.bits - 1] -= 1 << self.bits
        return values


def _with_grids(
    blocks: NDArray[np.float32], low: int, high: int, scales: NDArray[np.float32], offsets: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Candidates (blocks, tries) and one more, where some blocks are whole numbers of a scale."""
    from coreai_recipes.storage.kernels import find_grids

    grid, offset = np.empty(len(blocks), np.float32), np.empty(len(blocks), np.float32)
    find_grids(blocks, low, high, grid, offset)
    if not grid.any():
        return scales, offsets
    last_scale, last_offset = np.where(grid > 0, grid, scales[:, 0]), np.where(grid > 0, offset, offsets[:, 0])
    return np.concatenate((scales, last_scale[:, None]), 1), np.concatenate((offsets, last_offset[:, None]), 1)


def _checked(blocks: Iterable[Tensor], width: int, tensor: str) -> Iterator[NDArray[np.float32]]:
    for block in blocks:
        check_range(block, tensor)
        yield block.float().numpy().reshape(-1, width)


def _scales(ranges: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """Of so many levels over each range, rounded up to float16, or the largest would be cut off: by up to a half where
    a scale is one of float16's smallest. 1 where there is nothing but zeros."""
    exact = ranges / np.float32(levels)
    nearest = exact.astype(np.float16)
    above = np.nextafter(nearest, np.float16(FLOAT16_MAX))
    scales = np.where(nearest.astype(np.float32) < exact, above, nearest).astype(np.float32)
    return np.where(ranges == 0, np.float32(1), scales)


def largest_scale(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest of float16 of which so many are still a number of float16."""
    nearest = (np.float32(FLOAT16_MAX) / levels).astype(np.float16)
    below = np.nextafter(nearest, np.float16(0))
    return np.where(nearest.astype(np.float32) * levels <= FLOAT16_MAX, nearest, below).astype(np.float32)
