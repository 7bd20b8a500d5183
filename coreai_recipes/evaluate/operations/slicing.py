"""Slices, and writing into them. Out of range is an error here, where Core ML leaves the result open."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from coreai_recipes.evaluate.counting import nothing
from coreai_recipes.evaluate.opset import Call, Kernel, operation


class Part(NamedTuple):
    """What is taken of one axis: `length` elements from `start`, `stride` apart; one index when `squeezes`."""

    axis: int
    start: int
    length: int
    stride: int
    squeezes: bool


def take(x: Tensor, parts: list[Part]) -> Tensor:
    """The part of x, a view unless a stride is negative; `parts` begins with the last axis."""
    for axis, start, length, stride, squeezes in parts:
        if squeezes:
            x = x.select(axis, start)
        elif stride == 1:
            x = x.narrow(axis, start, length)
        elif stride > 1:
            x = x[(slice(None),) * axis + (slice(start, start + (length - 1) * stride + 1, stride),)]
        else:
            x = x.index_select(axis, torch.arange(length) * stride + start)
    return x


class Slice:
    """The constant parameters of a slice, and what they make of a begin and an end."""

    def __init__(self, call: Call) -> None:
        rank = len(call.shape("x"))
        self.call = call
        self.strides = call.integers("stride") or [1] * rank
        self.begin_mask, self.end_mask, self.squeeze_mask = (
            call.flags(name) or [False] * rank for name in ("begin_mask", "end_mask", "squeeze_mask")
        )

    def parts(self, sizes: tuple[int, ...], begin: list[int], end: list[int], clamps: bool) -> list[Part]:
        """The axes that are not taken whole, last first. `clamps`: an end beyond the axis is its end."""
        found = []
        for axis in reversed(range(len(sizes))):
            size, stride = sizes[axis], self.strides[axis]
            first, last = begin[axis], end[axis]
            if self.squeeze_mask[axis]:
                if not -size <= first < size:
                    self.call.fail(f"index {first} on axis {axis} is not in [{-size}, {size})")
                found.append(Part(axis, first % size, 1, 1, True))
                continue
            if stride > 0:
                start = 0 if self.begin_mask[axis] else first + size if first < 0 else first
                stop = size if self.end_mask[axis] else last + size if last < 0 else last
                stop = min(stop, size) if clamps else stop
                valid = 0 <= start <= stop <= size
            else:
                start = size - 1 if self.begin_mask[axis] else first + size if first < 0 else first
                stop = -1 if self.end_mask[axis] else last + size if last < 0 else last
                valid = -1 <= stop <= start < size
            if not valid:
                self.call.fail(f"range [{start}, {stop}) on axis {axis} is not within its {size} elements")
            length = -((start - stop) // stride)
            if start != 0 or stride != 1 or length != size:
                found.append(Part(axis, start, length, stride, False))
        return found


def _slicing(call: Call) -> tuple[Callable[..., list[Part]], list[str]]:
    """What gives the parts of (x, *bounds), and the names of the bounds that the run computes."""
    sliced = Slice(call)
    begin, end, shape = call.constant("begin"), call.constant("end"), call.shape("x")
    if begin is None or end is None:
        return (
            lambda x, begin, end: sliced.parts(x.shape, begin.tolist(), end.tolist(), clamps=False),
            ["begin", "end"],
        )
    first, last = begin.carried().tolist(), end.carried().tolist()
    if -1 in shape:
        return lambda x: sliced.parts(x.shape, first, last, clamps=True), []
    parts = sliced.parts(shape, first, last, clamps=True)
    return lambda x: parts, []


@operation("slice_by_index", moves=True, views=True, flops=nothing, reads="taken")
def prepare_slice_by_index(call: Call) -> Kernel:
    find_parts, bounds = _slicing(call)
    operands = [call.operand("x"), *(call.operand(name) for name in bounds)]
    if bounds or -1 in call.shape("x"):
        return Kernel(lambda x, *bounds: take(x, find_parts(x, *bounds)), operands)
    parts = find_parts(None)
    if len(parts) == 1:
        axis, start, length, stride, squeezes = parts[0]
        if squeezes:
            return Kernel(lambda x: x.select(axis, start), operands)
        if stride == 1:
            return Kernel(lambda x: x.narrow(axis, start, length), operands)
    return Kernel(lambda x: take(x, parts), operands)


@operation("slice_by_size", moves=True, views=True, flops=nothing, reads="taken")
def prepare_slice_by_size(call: Call) -> Kernel:
    """`size` elements from `begin` on each axis; -1 is all that follow."""

    def run(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
        for axis, (start, length) in enumerate(zip(begin.tolist(), size.tolist(), strict=True)):
            count = x.shape[axis]
            first = start + count if start < 0 else start
            last = count if length == -1 else first + length
            if not 0 <= first <= last <= count:
                call.fail(f"range [{first}, {last}) on axis {axis} is not within its {count} elements")
            x = x.narrow(axis, first, last - first)
        return x

    return Kernel(run, [call.operand("x"), call.operand("begin"), call.operand("size")])


@operation("slice_update", moves=True, views=True, flops=nothing, updates=("x", "update"))
def prepare_slice_update(call: Call) -> Kernel:
    """x with a part replaced; x itself is written to when nothing reads its old value any more."""
    find_parts, bounds = _slicing(call)
    if any(stride < 0 for stride in call.integers("stride") or []):
        call.fail("a negative stride cannot be evaluated in an update")
    overwrites = call.may_overwrite

    def run(x: Tensor, update: Tensor, *bounds: Tensor) -> Tensor:
        target = x if overwrites else x.clone()
        region = take(target, find_parts(x, *bounds))
        if region.shape != update.shape:
            call.fail(f"the update is {tuple(update.shape)}, the part that it replaces {tuple(region.shape)}")
        region.copy_(update)
        return target

    return Kernel(run, [call.operand("x"), call.operand("update"), *(call.operand(name) for name in bounds)])
