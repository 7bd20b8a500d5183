"""What float16 does to a program: four answers.

`float32`  every float value is float32; the weights keep the values that are stored. What is wrong here is wrong in
           the graph.
`rounded`  the result of each operation that the program declares float16 is rounded to float16 (to nearest even,
           beyond 65504 to infinity); inside, an operation computes in float32.
`strict`   as `rounded`, and the sums and products inside an operation are float16 too:
           - a matrix product or convolution adds up 64 input channels at a time in float32, rounds that sum, adds it
             to the running sum and rounds again;
           - a reduction does the same with 64 neighbouring elements; a mean divides the rounded sum;
           - norms, softmax and attention are taken apart into such sums and elementwise steps, each step rounded;
           - one elementwise function (exp, gelu, ...) is one step: the engine reads it from a table.
           Real engines keep wider sums; a program that survives this survives them.
`engine`   as `rounded`, with what is known of the Neural Engine's habits (`evaluate.habits`): ceilings, flushed
           reciprocals, activations from tables. A program that survives this meets none of them.

An operation *overflows* when a float16 value in it, its result or in `strict` a step inside it, is infinite or NaN
while all its operands were finite.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from coreai_recipes.evaluate.constants import BLOCK, Kept

Precision = Literal["float32", "rounded", "strict", "engine"]
MOST_TOGETHER = 1 << 20  # numbers of the sums of all blocks, where they are had at once
LEAST_EXPONENT = -20.0
PRECISIONS: tuple[str, ...] = get_args(Precision)


class Rounding:
    """Rounds to float16 and remembers whether a result was not finite since `saw_overflow` was last cleared."""

    def __init__(self) -> None:
        self.saw_overflow = False

    def round(self, value: Tensor) -> Tensor:
        return self.widen(value.half())

    def widen(self, halves: Tensor) -> Tensor:
        """float16 values as the float32 values that they are."""
        value = halves.float()
        # One float32 sum is cheaper than isfinite().all(), and finite float16 values cannot overflow it.
        if not math.isfinite(value.sum()):
            self.saw_overflow = True
        return value


def is_finite(value: object) -> bool:
    """Whether a tensor of any type holds neither infinity nor NaN."""
    return not isinstance(value, Tensor) or not value.is_floating_point() or math.isfinite(value.sum())


def has_nan(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())


class Arithmetic:
    """The sums and products inside operations, in float32. `round` is what happens to a step's result: nothing.

    `kept` is how `times_vector` wants its matrix, of float16 numbers where that is not float32.
    """

    kept: Kept = "carried"

    def times_vector(self, matrix: Tensor, x: Tensor) -> Tensor:
        """A constant matrix (O, C) times x (C,)."""
        return torch.mv(matrix, x)

    def round(self, value: Tensor) -> Tensor:
        return value

    def sum(self, x: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
        return x.sum(tuple(axes), keepdim=keep)

    def mean(self, x: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
        return x.mean(tuple(axes), keepdim=keep)

    def cumulative_sum(self, x: Tensor, axis: int) -> Tensor:
        return x.cumsum(axis)

    def product(self, x: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
        for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
            x = x.prod(axis, keepdim=keep)
        return x

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x, y)

    def in_blocks(self, channels: int, partial: Callable[[int, int], Tensor]) -> Tensor:
        """The sum over all channels, where `partial(first, last)` is that over some of them."""
        return partial(0, channels)

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        return torch.softmax(x, axis)


class RoundedArithmetic(Arithmetic):
    """The same for results that are rounded to float16. A vector's products are summed in float32 and rounded by torch
    itself, of halves: a step goes through all weights, and is as fast as these can be read."""

    kept: Kept = "stored"

    def times_vector(self, matrix: Tensor, x: Tensor) -> Tensor:
        return torch.mv(matrix, x.half())


class Float16Arithmetic(Arithmetic):
    """The same with every sum and step in float16, as `strict` says above."""

    kept: Kept = "blocks"

    def __init__(self, rounding: Rounding) -> None:
        self.round = rounding.round  # type: ignore[method-assign]
        self._widen = rounding.widen

    def in_blocks(self, channels: int, partial: Callable[[int, int], Tensor]) -> Tensor:
        return self._add(
            partial(first, min(first + BLOCK, channels)).half() for first in range(0, max(channels, 1), BLOCK)
        )

    def _add(self, halves: Iterable[Tensor]) -> Tensor:
        # torch adds two halves in float32 and rounds once; what became infinite or NaN stays so, and is seen at the end
        return self._widen(reduce(torch.add, halves))

    def times_vector(self, matrix: Tensor, x: Tensor) -> Tensor:
        """`matrix` is flat, block after block."""
        rows, parts = matrix.numel() // len(x), torch.split(x.half(), BLOCK)
        blocks = torch.split(matrix, rows * BLOCK)
        return self._add(torch.mv(block.view(rows, -1), part) for block, part in zip(blocks, parts, strict=True))

    def sum(self, x: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
        summed = {axis % x.dim() for axis in axes}
        if len(summed) == 1:
            (axis,) = summed
            whole = x.shape[axis] // BLOCK * BLOCK
            parts = [x.narrow(axis, whole, x.shape[axis] - whole).sum(axis).half()] if whole < x.shape[axis] else []
            if whole:
                blocks = (*x.shape[:axis], whole // BLOCK, BLOCK, *x.shape[axis + 1 :])
                sums = x.narrow(axis, 0, whole).reshape(blocks).sum(axis + 1).half()
                parts = [*sums.unbind(axis), *parts]
            total = self._add(parts)
            return total.unsqueeze(axis) if keep else total
        others = [axis for axis in range(x.dim()) if axis not in summed]
        flat = x.permute(*others, *sorted(summed)).reshape([x.shape[axis] for axis in others] + [-1])
        total = self.in_blocks(flat.shape[-1], lambda first, last: flat[..., first:last].sum(-1))
        return total.reshape([1 if axis in summed else x.shape[axis] for axis in range(x.dim())]) if keep else total

    def mean(self, x: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
        count = math.prod(x.shape[axis] for axis in axes)
        return self.round(self.sum(x, axes, keep) / count)

    def cumulative_sum(self, x: Tensor, axis: int) -> Tensor:
        parts = list(x.unbind(axis))
        for index in range(1, len(parts)):
            parts[index] = self.round(parts[index - 1] + parts[index])
        return torch.stack(parts, axis)

    def product(self, x: Tensor, axes: Sequence[int], keep: bool = True) -> Tensor:
        for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
            total, *parts = x.unbind(axis)
            for part in parts:
                total = self.round(total * part)
            x = total.unsqueeze(axis) if keep else total
        return x

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() == 1 or y.dim() == 1:
            wide = self.matmul(x[None] if x.dim() == 1 else x, y[:, None] if y.dim() == 1 else y)
            wide = wide.squeeze(-1) if y.dim() == 1 else wide
            return wide.squeeze(-2 if y.dim() > 1 else -1) if x.dim() == 1 else wide
        channels = x.shape[-1]
        blocks, rest = divmod(channels, BLOCK)
        if blocks > 1 and not rest and blocks * x[..., 0].numel() * y.shape[-1] <= MOST_TOGETHER:
            halves = torch.matmul(
                x.reshape(*x.shape[:-1], blocks, BLOCK).transpose(-2, -3),  # (..., blocks, S, 64)
                y.reshape(*y.shape[:-2], blocks, BLOCK, -1),  # (..., blocks, 64, T)
            ).half()
            return self._add(halves.unbind(-3))
        return self.in_blocks(channels, lambda first, last: torch.matmul(x[..., first:last], y[..., first:last, :]))

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        # in float16 the exponential of anything less is 0 too, and what masks have left takes torch five times as long
        below = self.round(x - x.amax(axis, keepdim=True)).clamp_(min=LEAST_EXPONENT)
        raised = self.round(torch.exp(below))
        return self.round(raised / self.sum(raised, [axis]))
