"""Quantising values at run time. (Weights are decompressed by `decompress`, before the run.)"""

import torch
from torch import Tensor

from coreai_recipes.evaluate.element_types import ELEMENT_TYPES
from coreai_recipes.evaluate.opset import Call, Kernel, Operand, operation


def _along_axis(call: Call, name: str) -> Operand:
    """A scalar, or a constant vector along the operation's axis, shaped to broadcast."""
    rank = len(call.shape("input"))
    found = call.operand(name)
    if not found.shape:
        return found
    axis = call.integer("axis") % rank
    return Operand(found.source, tuple(found.shape[0] if place == axis else 1 for place in range(rank)))


def _operands(call: Call) -> list[Operand]:
    names = ["scale", "zero_point"] if call.has("zero_point") else ["scale"]
    return [call.operand("input"), *(_along_axis(call, name) for name in names)]


@operation("quantize")
def prepare_quantize(call: Call) -> Kernel:
    """clip(round(x / scale) + zero_point)"""
    limits = torch.iinfo(ELEMENT_TYPES[call.node.results[0].element_type].carrier)
    result_type, round_step = call.result_type, call.arithmetic.round

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        places = torch.round(round_step(x / scale))
        places = places if zero_point is None else places + zero_point.float()
        return places.clamp(limits.min, limits.max).to(result_type)

    return Kernel(run, _operands(call))


@operation("dequantize")
def prepare_dequantize(call: Call) -> Kernel:
    """scale * (x - zero_point)"""

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        places = x.float() if zero_point is None else x.float() - zero_point.float()
        return places * scale

    return Kernel(run, _operands(call))
