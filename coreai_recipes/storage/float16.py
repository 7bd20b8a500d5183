"""Two bytes a number. Weights become float16 here, and what float16 cannot hold is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.errors import CheckpointError
from coreai_recipes.storage.base import Part, Shape, Storage

if TYPE_CHECKING:
    from torch import Tensor

FLOAT16_MAX = 65504.0
# torch converts bfloat16 to float32 and float32 to float16 with vector instructions, but not bfloat16 to float16:
# 5.5 GB/s by way of pieces that stay in the cache, 3.5 GB/s directly.
PIECE_ELEMENTS = 1 << 18


class BeyondFloat16(CheckpointError):
    """A weight that float16 cannot hold: of `tensor`, the largest element of the block that was read."""

    def __init__(self, tensor: str, found: float, largest: float) -> None:
        super().__init__(f"{tensor} holds {found:.7g}, and float16 ends at 65,504")
        self.tensor, self.largest = tensor, largest


class Float16(Storage):
    """Every number rounded to float16: the form of whatever a recipe does not compress."""

    kind = "float16"

    def __str__(self) -> str:
        return "float16"

    def parts(self, shape: Shape) -> tuple[Part, ...]:
        return (Part("", "float16", shape),)

    def encode(self, blocks: Iterable[Tensor], shape: Shape, tensor: str) -> Iterator[tuple[int, NDArray[Any]]]:
        import torch

        missing = prod(shape)
        buffers = [torch.empty(0, dtype=torch.float16)] * 2
        for number, block in enumerate(blocks):
            if buffers[number % 2].numel() < block.numel():
                buffers[number % 2] = torch.empty(block.numel(), dtype=torch.float16)
            yield 0, to_float16(block, tensor, buffers[number % 2][: block.numel()]).numpy()
            missing -= block.numel()
        if missing > 0:
            yield 0, np.zeros(missing, np.float16)

    def decode(self, parts: list[NDArray[Any]], shape: Shape) -> Tensor:
        import torch

        return torch.from_numpy(parts[0].reshape(shape).astype(np.float32))  # a file's own bytes cannot be written to

    def as_stored(self, rows: Tensor, tensor: str) -> Tensor:
        return to_float16(rows, tensor).float()


def to_float16(block: Tensor, tensor_name: str, out: Tensor | None = None) -> Tensor:
    """`block` in float16, in `out` (contiguous, as many elements) when given; a float16 block is given back as it is.

    Raises CheckpointError with `tensor_name` when an element is NaN, infinite, or larger than 65504 in magnitude, also
    where rounding would still bring it back to 65504.
    """
    import torch

    check_range(block, tensor_name)
    if block.dtype == torch.float16 and out is None:
        return block
    if out is None:
        out = torch.empty(block.shape, dtype=torch.float16)
    target = out.view(block.shape)
    if block.dtype != torch.bfloat16 or not block.is_contiguous():
        target.copy_(block)
        return target
    scratch = torch.empty(min(PIECE_ELEMENTS, block.numel()))
    source, converted = block.view(-1), target.view(-1)
    for start in range(0, block.numel(), PIECE_ELEMENTS):
        piece = source[start : start + PIECE_ELEMENTS]
        converted[start : start + PIECE_ELEMENTS] = scratch[: len(piece)].copy_(piece)
    return target


def check_range(block: Tensor, tensor_name: str) -> None:
    """CheckpointError, with the first such value, when float16 cannot hold an element of `block`."""
    import torch

    if block.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(block))
    if low >= -FLOAT16_MAX and high <= FLOAT16_MAX:  # false for NaN, which aminmax hands on
        return
    flat = block.reshape(-1).double()  # in bfloat16 the comparison would round 65504 to 65536
    index = int((flat.abs() <= FLOAT16_MAX).logical_not().nonzero()[0])
    value = flat[index].item()
    if value != value:
        raise CheckpointError(f"{tensor_name} holds NaN")
    if value in (float("inf"), float("-inf")):
        raise CheckpointError(f"{tensor_name} holds an infinity")
    raise BeyondFloat16(tensor_name, value, float(flat.abs().max()))
