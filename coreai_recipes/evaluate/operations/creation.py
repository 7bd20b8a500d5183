"""Tensors out of numbers and shapes."""

import torch
from torch import Tensor

from coreai_recipes.evaluate.counting import nothing
from coreai_recipes.evaluate.opset import Call, Kernel, operation, unary


@operation("fill", moves=True, flops=nothing)
def prepare_fill(call: Call) -> Kernel:
    value, result_type = call.number("value", 0.0), call.result_type

    def run(shape: Tensor) -> Tensor:
        call.check_size(shape.tolist())
        return torch.full(shape.tolist(), value, dtype=result_type)

    return Kernel(run, [call.operand("shape")])


@operation("fill_like", moves=True, flops=nothing)
def prepare_fill_like(call: Call) -> Kernel:
    value, result_type = call.number("value", 0.0), call.result_type
    return Kernel(lambda reference: torch.full(reference.shape, value, dtype=result_type), [call.operand("ref_tensor")])


@operation("range_1d", flops=nothing)
def prepare_range_1d(call: Call) -> Kernel:
    result_type = call.result_type

    def run(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
        call.check_size([abs(end.item() - start.item()) // abs(step.item())])
        return torch.arange(start.item(), end.item(), step.item(), dtype=result_type)

    return Kernel(run, [call.operand(name) for name in ("start", "end", "step")])


@operation("shape", flops=nothing)
def prepare_shape(call: Call) -> Kernel:
    result_type = call.result_type
    return unary(call, lambda x: torch.tensor(x.shape, dtype=result_type))


@operation("band_part", moves=True, flops=nothing)
def prepare_band_part(call: Call) -> Kernel:
    """Keeps `lower` diagonals below the main one and `upper` above it; a negative number keeps all."""
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)

    def run(x: Tensor) -> Tensor:
        x = x.tril(upper) if upper >= 0 else x
        return x.triu(-lower) if lower >= 0 else x.clone()

    return unary(call, run)
