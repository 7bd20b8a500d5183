"""Reductions along axes, and what orders elements along one."""

from collections.abc import Callable

import torch
from torch import Tensor

from coreai_recipes.evaluate.counting import passes
from coreai_recipes.evaluate.opset import Call, Kernel, operation, unary
from coreai_recipes.evaluate.precision import Arithmetic

Reduction = Callable[[Arithmetic, Tensor, list[int], bool], Tensor]


def _sum_of_squares(arithmetic: Arithmetic, x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return arithmetic.sum(arithmetic.round(x * x), axes, keep)


# Each with its arithmetic for an element of x.
REDUCTIONS: dict[str, tuple[int, Reduction]] = {
    "reduce_l1_norm": (2, lambda arithmetic, x, axes, keep: arithmetic.sum(x.abs(), axes, keep)),
    "reduce_l2_norm": (2, lambda arithmetic, x, axes, keep: _sum_of_squares(arithmetic, x, axes, keep).sqrt()),
    "reduce_log_sum": (1, lambda arithmetic, x, axes, keep: arithmetic.sum(x, axes, keep).log()),
    "reduce_mean": (1, lambda arithmetic, x, axes, keep: arithmetic.mean(x, axes, keep)),
    "reduce_prod": (1, lambda arithmetic, x, axes, keep: arithmetic.product(x, axes, keep)),
    "reduce_sum": (1, lambda arithmetic, x, axes, keep: arithmetic.sum(x, axes, keep)),
    "reduce_sum_square": (2, _sum_of_squares),
}
EXTREMES: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {"reduce_max": torch.amax, "reduce_min": torch.amin}
ARGUMENTS: dict[str, Callable[..., Tensor]] = {"reduce_argmax": torch.argmax, "reduce_argmin": torch.argmin}


def _register(name: str, flops: int, reduce: Reduction) -> None:
    @operation(name, flops=passes(flops))
    def prepare(call: Call) -> Kernel:
        axes, keep = call.axes("axes", len(call.shape("x"))), call.flag("keep_dims")
        arithmetic, result_type = call.arithmetic, call.result_type
        if result_type.is_floating_point:
            return unary(call, lambda x: reduce(arithmetic, x, axes, keep))
        if name == "reduce_mean":
            return unary(call, lambda x: x.double().mean(axes, keepdim=keep).to(result_type))
        return unary(call, lambda x: reduce(arithmetic, x, axes, keep).to(result_type))


def _register_extreme(name: str, reduce: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    @operation(name, moves=True, flops=passes(1))
    def prepare(call: Call) -> Kernel:
        axes, keep = call.axes("axes", len(call.shape("x"))), call.flag("keep_dims")
        return unary(call, lambda x: reduce(x, axes, keep))


def _register_argument(name: str, reduce: Callable[..., Tensor]) -> None:
    @operation(name, flops=passes(1))
    def prepare(call: Call) -> Kernel:
        axis, keep, result_type = call.integer("axis", -1), call.flag("keep_dims"), call.result_type
        return unary(call, lambda x: reduce(x, axis, keep).to(result_type))


for _name, (_flops, _reduce) in REDUCTIONS.items():
    _register(_name, _flops, _reduce)
for _name, _extreme in EXTREMES.items():
    _register_extreme(_name, _extreme)
for _name, _argument in ARGUMENTS.items():
    _register_argument(_name, _argument)


@operation("cumsum", flops=passes(1))
def prepare_cumsum(call: Call) -> Kernel:
    axis, exclusive, reverse = call.integer("axis", 0), call.flag("exclusive"), call.flag("reverse")
    cumulative_sum, result_type = call.arithmetic.cumulative_sum, call.result_type

    def run(x: Tensor) -> Tensor:
        x = x.flip(axis) if reverse else x
        if exclusive:
            size = x.shape[axis]
            x = torch.cat((torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, size - 1)), axis)
        total = cumulative_sum(x, axis).to(result_type)
        return total.flip(axis) if reverse else total

    return unary(call, run)


@operation("topk", moves=True, flops=passes(1))
def prepare_topk(call: Call) -> Kernel:
    count, axis = call.integer("k", 1), call.integer("axis", -1)
    largest, ordered = not call.flag("ascending"), call.flag("sort", True)
    both = len(call.node.results) > 1

    def run(x: Tensor) -> list[Tensor] | Tensor:
        if not 0 <= count <= x.shape[axis]:
            call.fail(f"needs {count} of {x.shape[axis]} elements along axis {axis}")
        values, places = x.topk(count, axis, largest=largest, sorted=ordered)
        return [values, places.to(torch.int32)] if both else values

    return unary(call, run)


@operation("argsort", flops=passes(1))
def prepare_argsort(call: Call) -> Kernel:
    axis, descending = call.integer("axis", -1), not call.flag("ascending")
    return unary(call, lambda x: x.argsort(stable=True, dim=axis, descending=descending).to(torch.int32))
