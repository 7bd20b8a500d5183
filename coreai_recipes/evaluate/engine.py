"""What each habit of the engine makes of the kernels that it concerns. `evaluate.habits` says where they come from."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.evaluate.manner import adapts
from coreai_recipes.evaluate.operations.matrix import attend
from coreai_recipes.evaluate.opset import Call, Kernel
from coreai_recipes.evaluate.precision import Arithmetic

# What rounds to 32,768, and the first float16 beyond 4,094.
CEILING, UNSLICED = 32760.0, 4096.0
SMALLEST_NORMAL = 2.0**-14


def _beyond(limit: float) -> Callable[[Tensor], Tensor]:
    """Makes infinite what lies at or beyond `limit`."""

    def limited(value: Tensor) -> Tensor:
        if not value.numel() or value.abs().amax() < limit:
            return value
        return torch.where(value.abs() >= limit, value.sign() * torch.inf, value)

    return limited


_saturate = _beyond(CEILING)
_crop = _beyond(UNSLICED)


def _flush(value: Tensor) -> Tensor:
    return torch.where(value.abs() < SMALLEST_NORMAL, 0.0, value)


@adapts("mac-32768", "conv", "linear", "matmul", "einsum")
def _saturate_product(call: Call, kernel: Kernel) -> Kernel:
    if call.node.type == "conv" and math.prod(call.shape("weight")[1:]) == 1:
        return kernel  # nothing is accumulated: P saw 60,000 pass
    run = kernel.run
    return Kernel(lambda *operands: _saturate(run(*operands)), kernel.operands)


class _Saturating(Arithmetic):
    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return _saturate(torch.matmul(x, y))


@adapts("mac-32768", "scaled_dot_product_attention")
def _saturate_attention(call: Call, kernel: Kernel) -> Kernel:
    return Kernel(attend(_Saturating()), kernel.operands)


def _reciprocal(y: Tensor) -> Tensor:
    return _flush(torch.reciprocal(y).half().float())


@adapts("div-sub", "real_div")
def _multiply_by_reciprocal(call: Call, kernel: Kernel) -> Kernel:
    return Kernel(lambda x, y: x * _reciprocal(y), [call.operand("x"), call.operand("y")])


@adapts("div-sub", "inverse")
def _flush_inverse(call: Call, kernel: Kernel) -> Kernel:
    run = kernel.run
    return Kernel(lambda x: _flush(run(x).half().float()), kernel.operands)


@adapts("rsqrt-0", "rsqrt")
def _flush_under_root(call: Call, kernel: Kernel) -> Kernel:
    epsilon = call.number("epsilon", 1e-12)
    return Kernel(lambda x: torch.rsqrt(_flush((x + epsilon).half().float())), kernel.operands)


# Of each activation the value at 0, None where it is the function's own, and the slope and intercept of its asymptotes.
LAST_KNOT, SEGMENTS = 8.0, 32
TABLES: dict[str, tuple[float | None, tuple[float, float], tuple[float, float]]] = {
    "gelu": (-0.000543, (0.0, 0.0), (1.0, 0.0)),
    "sigmoid": (None, (0.0, 0.0), (0.0, 1.0)),
    "silu": (-0.001259, (0.0, 0.0), (1.0, 0.0)),
    "tanh": (None, (0.0, -1.0), (0.0, 1.0)),
}


@adapts("act-lut", *TABLES)
def _look_up(call: Call, kernel: Kernel) -> Kernel:
    origin, left, right = TABLES[call.node.type]
    knots = torch.linspace(-LAST_KNOT, LAST_KNOT, SEGMENTS + 1)
    values = kernel.run(knots)
    if origin is not None:
        values[SEGMENTS // 2] = origin
    slopes = values.diff() / knots.diff()
    intercepts = values[:-1] - slopes * knots[:-1]
    table = torch.cat((torch.tensor([left]), torch.stack((slopes, intercepts), 1), torch.tensor([right])))
    steps_a_unit = SEGMENTS / (2 * LAST_KNOT)

    def run(x: Tensor) -> Tensor:
        # an infinity times the slope 0 would be NaN; beyond 65504 rounding makes it one again
        x = x.clamp(-1e5, 1e5)
        place = torch.floor((x + LAST_KNOT) * steps_a_unit).nan_to_num().clamp(-1, SEGMENTS).long() + 1
        slope, intercept = table[place].unbind(-1)
        return slope * x + intercept

    return Kernel(run, kernel.operands)


@adapts("slice-w4094", "slice_by_index", "slice_by_size")
def _crop_slice(call: Call, kernel: Kernel) -> Kernel:
    last, begin = len(call.shape("x")) - 1, call.constant("begin")
    masked = call.flags("begin_mask") if call.node.type == "slice_by_index" else None
    if masked and masked[last]:
        return kernel
    size = call.shape("x")[last]
    # an offset that the run computes is one where not the whole axis is taken
    offset = begin.carried().tolist()[last] if begin is not None else int(call.result_shape[-1:] != (size,))
    run = kernel.run
    return kernel if offset in (0, -size) else Kernel(lambda *operands: _crop(run(*operands)), kernel.operands)


@adapts("slice-w4094", "split")
def _crop_parts(call: Call, kernel: Kernel) -> Kernel:
    if call.integer("axis") % len(call.shape("x")) != len(call.shape("x")) - 1:
        return kernel
    run = kernel.run

    def run_and_crop(*operands: Any) -> list[Tensor]:
        first, *others = run(*operands)
        return [first, *map(_crop, others)]

    return Kernel(run_and_crop, kernel.operands)
