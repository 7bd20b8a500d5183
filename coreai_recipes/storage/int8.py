"""Eight bits a number and a scale for each channel: a weight is data * scale, data in -127..127, no offset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.storage.base import Part, Shape, Storage, axis_of_row
from coreai_recipes.storage.float16 import FLOAT16_MAX, PIECE_ELEMENTS, check_range

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 127
# 127 times the next larger float16, 516, is an infinity
LARGEST_SCALE = np.float16(515.5)


class Int8(Storage):
    """A channel is a row: all weights of one output, of one token in a table, of one output of one expert."""

    kind = "int8"
    operation = "constexpr_blockwise_shift_scale"

    def __str__(self) -> str:
        return "int8 per channel"

    def parts(self, shape: Shape) -> tuple[Part, ...]:
        axis = axis_of_row(shape)
        return (
            Part("data", "int8", shape),
            Part("scale", "float16", tuple(1 if i == axis else size for i, size in enumerate(shape))),
        )

    def encode(self, blocks: Iterable[Tensor], shape: Shape, tensor: str) -> Iterator[tuple[int, NDArray[Any]]]:
        import torch

        width = shape[axis_of_row(shape)]
        missing = prod(shape) // width
        rows_in_a_piece = max(1, PIECE_ELEMENTS // width)
        scales: list[NDArray[np.float16]] = []
        for block in blocks:
            check_range(block, tensor)
            rows = block.reshape(-1, width)
            data = torch.empty(rows.shape, dtype=torch.int8)
            for start in range(0, len(rows), rows_in_a_piece):
                piece = rows[start : start + rows_in_a_piece].float()
                scale = scales_of(piece.abs().amax(1).numpy())
                scales.append(scale)
                quotient = piece / torch.from_numpy(scale).float()[:, None]
                data[start : start + rows_in_a_piece] = quotient.round_().clamp_(-LARGEST, LARGEST)
            yield 0, data.numpy()
            missing -= len(rows)
        if missing > 0:
            yield 0, np.zeros((missing, width), np.int8)
            scales.append(np.ones(missing, np.float16))
        yield 1, np.concatenate(scales)

    def decode(self, parts: list[NDArray[Any]], shape: Shape) -> Tensor:
        import torch

        data, scale = (
            torch.from_numpy(found.reshape(part.shape)).float()
            for part, found in zip(self.parts(shape), parts, strict=True)
        )
        return (data * scale).half().float()


def scales_of(peaks: NDArray[np.float32]) -> NDArray[np.float16]:
    """The scale of each row, of the largest magnitude in it.

    It is rounded up, or the largest would be cut off: by up to a half where a scale is one of float16's smallest.
    """
    exact = peaks / np.float32(LARGEST)
    nearest = exact.astype(np.float16)
    above = np.nextafter(nearest, np.float16(FLOAT16_MAX))
    scales = np.minimum(np.where(nearest.astype(np.float32) < exact, above, nearest), LARGEST_SCALE)
    return np.where(peaks == 0, np.float16(1), scales)
