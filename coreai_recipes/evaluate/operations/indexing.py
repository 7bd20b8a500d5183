"""Gathers and scatters. An index out of range is an error here, where Core ML leaves the result open."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from coreai_recipes.evaluate.counting import nothing
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES
from coreai_recipes.evaluate.opset import Call, Kernel, operation, unary


def _checked(call: Call, indices: Tensor, size: int) -> Tensor:
    """The same indices, int64 and counted from the front. Since iOS 17 a negative index is out of range."""
    if indices.numel():
        lowest, highest = (int(bound) for bound in indices.aminmax())
        floor = -size if call.counts_from_end else 0
        if lowest < floor or highest >= size:
            call.fail(f"index {lowest if lowest < floor else highest} is not in [{floor}, {size})")
        if lowest < 0:
            return torch.where(indices < 0, indices + size, indices).long()
    return indices.long()


@operation("gather", moves=True, flops=nothing, reads="taken")
def prepare_gather(call: Call) -> Kernel:
    axis, batch_axes = call.integer("axis", 0), call.integer("batch_dims", 0)
    axis %= len(call.shape("x"))
    table = call.constant("x")
    if axis == 0 and table is not None and table.is_large and table.rows([0]) is not None:
        return _gather_rows(call)
    if batch_axes:
        return _gather_in_batches(call, axis, batch_axes)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        places = _checked(call, indices, x.shape[axis])
        taken = x.index_select(axis, places.reshape(-1))
        return taken if places.dim() == 1 else taken.reshape(x.shape[:axis] + places.shape + x.shape[axis + 1 :])

    return Kernel(run, [call.operand("x"), call.operand("indices")])


def _gather_rows(call: Call) -> Kernel:
    """Rows of a table in weight.bin are read from the file: an embedding need not be in memory."""
    table = call.constant("x")
    assert table is not None
    carrier, shape = ELEMENT_TYPES[table.element_type].carrier, table.shape

    def run(indices: Tensor) -> Tensor:
        rows = table.rows(_checked(call, indices, shape[0]).reshape(-1).tolist())
        assert rows is not None
        return rows.to(carrier).reshape(indices.shape + shape[1:])

    return Kernel(run, [call.operand("indices")])


def _gather_in_batches(call: Call, axis: int, batch_axes: int) -> Kernel:
    """x and indices share their first `batch_axes` axes: D[:axis] + N[batch_axes:] + D[axis + 1:]."""

    def run(x: Tensor, indices: Tensor) -> Tensor:
        places = _checked(call, indices, x.shape[axis]).reshape(-1, indices.shape[batch_axes:].numel())
        batches = x.reshape(-1, *x.shape[batch_axes:])
        taken = [part.index_select(axis - batch_axes, place) for part, place in zip(batches, places, strict=True)]
        return torch.stack(taken).reshape(x.shape[:axis] + indices.shape[batch_axes:] + x.shape[axis + 1 :])

    return Kernel(run, [call.operand("x"), call.operand("indices")])


@operation("gather_along_axis", moves=True, flops=nothing, reads="taken")
def prepare_gather_along_axis(call: Call) -> Kernel:
    axis = call.integer("axis", 0)
    return Kernel(
        lambda x, indices: x.gather(axis, _checked(call, indices, x.shape[axis])),
        [call.operand("x"), call.operand("indices")],
    )


def _row_numbers(call: Call, indices: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The row-major number of each place that the last axis of `indices` gives in `sizes`."""
    total = torch.zeros(indices.shape[:-1], dtype=torch.long)
    for place, size in enumerate(sizes):
        total = total * size + _checked(call, indices[..., place], size)
    return total


@operation("gather_nd", moves=True, flops=nothing, reads="taken")
def prepare_gather_nd(call: Call) -> Kernel:
    batch_axes = call.integer("batch_dims", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        depth, batches = indices.shape[-1], x.shape[:batch_axes].numel()
        numbers = _row_numbers(call, indices, x.shape[batch_axes : batch_axes + depth]).reshape(batches, -1)
        rest = x.shape[batch_axes + depth :]
        flat = x.reshape(batches, -1, rest.numel())
        taken = torch.stack([part[place] for part, place in zip(flat, numbers, strict=True)])
        return taken.reshape(indices.shape[:-1] + rest)

    return Kernel(run, [call.operand("x"), call.operand("indices")])


Scatter = Callable[[Tensor, int, Tensor, Tensor], Tensor]
SCATTERS: dict[str, Scatter] = {
    "add": lambda data, axis, places, updates: data.scatter_add(axis, places, updates),
    "div": lambda data, axis, places, updates: (
        data / torch.ones_like(data).scatter_reduce(axis, places, updates, "prod")
    ),
    "max": lambda data, axis, places, updates: data.scatter_reduce(axis, places, updates, "amax"),
    "min": lambda data, axis, places, updates: data.scatter_reduce(axis, places, updates, "amin"),
    "mul": lambda data, axis, places, updates: data.scatter_reduce(axis, places, updates, "prod"),
    "sub": lambda data, axis, places, updates: data.scatter_add(axis, places, -updates),
    "update": lambda data, axis, places, updates: data.scatter(axis, places, updates),
}


def _scatter_of(call: Call) -> Scatter:
    mode = call.text("mode", "add")
    if mode not in SCATTERS:
        call.fail(f"mode {mode} cannot be evaluated")
    scatter, result_type = SCATTERS[mode], call.result_type
    return lambda data, axis, places, updates: scatter(data, axis, places, updates).to(result_type)


def _scatter_operands(call: Call) -> list[str]:
    return ["data", "indices", "updates"]


@operation("scatter_along_axis", flops=nothing, updates=("data", "updates"))
def prepare_scatter_along_axis(call: Call) -> Kernel:
    axis, scatter = call.integer("axis", 0), _scatter_of(call)

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        return scatter(data, axis, _checked(call, indices, data.shape[axis]), updates)

    return Kernel(run, [call.operand(name) for name in _scatter_operands(call)])


@operation("scatter", flops=nothing, updates=("data", "updates"))
def prepare_scatter(call: Call) -> Kernel:
    """D[:axis] + N + D[axis + 1:] of updates go to D, where N is the shape of the indices."""
    axis, scatter = call.integer("axis", 0) % len(call.shape("data")), _scatter_of(call)

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _checked(call, indices.reshape(-1), data.shape[axis])
        updates = updates.reshape(data.shape[:axis] + places.shape + data.shape[axis + 1 :])
        places = places.reshape(-1, *[1] * (data.dim() - axis - 1)).expand(updates.shape)
        return scatter(data, axis, places, updates)

    return Kernel(run, [call.operand(name) for name in _scatter_operands(call)])


@operation("scatter_nd", flops=nothing, updates=("data", "updates"))
def prepare_scatter_nd(call: Call) -> Kernel:
    scatter = _scatter_of(call)

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        depth = indices.shape[-1]
        flat = data.reshape(math.prod(data.shape[:depth]), -1)
        rows = updates.reshape(-1, flat.shape[1])
        places = _row_numbers(call, indices, data.shape[:depth]).reshape(-1, 1).expand(rows.shape)
        return scatter(flat, 0, places, rows).reshape(data.shape)

    return Kernel(run, [call.operand(name) for name in _scatter_operands(call)])


@operation("non_zero", flops=nothing)
def prepare_non_zero(call: Call) -> Kernel:
    return unary(call, lambda x: x.nonzero().to(torch.int32))


@operation("one_hot", flops=nothing)
def prepare_one_hot(call: Call) -> Kernel:
    """An index out of range gives a vector that is off everywhere."""
    on, off = call.number("on_value", 1), call.number("off_value", 0)
    size, result_type = call.integer("one_hot_vector_size"), call.result_type
    rank = len(call.shape("indices")) + 1
    axis = call.integer("axis", -1) % rank
    call.check_size([size])
    places = torch.arange(size).reshape([size if place == axis else 1 for place in range(rank)])
    return Kernel(
        lambda indices: torch.where(indices.unsqueeze(axis) == places, on, off).to(result_type),
        [call.operand("indices")],
    )
