"""Norms. Each is written once as sums and steps; in float32 the steps' rounding is nothing."""

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from coreai_recipes.evaluate.counting import SOFTMAX, Sizes, elements, passes
from coreai_recipes.evaluate.opset import Call, Kernel, Node, Operand, operation
from coreai_recipes.evaluate.precision import Arithmetic, Float16Arithmetic


def _scale_and_shift(call: Call, place: Callable[[str], Operand]) -> tuple[list[Operand], Callable[..., Tensor]]:
    """The operands gamma and beta, as far as they are given, and what applies them."""
    given = [name for name in ("gamma", "beta") if call.has(name)]
    round_step = call.arithmetic.round

    def apply(x: Tensor, *parameters: Tensor) -> Tensor:
        for name, values in zip(given, parameters, strict=True):
            x = round_step(x * values) if name == "gamma" else x + values
        return x

    return [place(name) for name in given], apply


def _normalize(arithmetic: Arithmetic, x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over `axes`."""
    round_step = arithmetic.round
    centred = round_step(x - arithmetic.mean(x, axes))
    variance = arithmetic.mean(round_step(centred * centred), axes)
    return round_step(centred * round_step(torch.rsqrt(round_step(variance + epsilon))))


@operation("layer_norm", flops=passes(7))  # sum, difference, square, sum, factor, gamma, beta
def prepare_layer_norm(call: Call) -> Kernel:
    shape = call.shape("x")
    axes = sorted(call.axes("axes", len(shape)))
    epsilon, arithmetic = call.number("epsilon", 1e-5), call.arithmetic
    normalized = [shape[axis] for axis in axes]
    are_last = axes == list(range(axes[0], len(shape))) and -1 not in normalized
    if are_last and not isinstance(arithmetic, Float16Arithmetic):
        names = [name for name in ("gamma", "beta") if call.has(name)]

        def run(x: Tensor, *parameters: Tensor) -> Tensor:
            given = dict(zip(names, parameters, strict=True))
            return functional.layer_norm(x, normalized, given.get("gamma"), given.get("beta"), epsilon)

        return Kernel(run, [call.operand("x"), *(call.operand(name) for name in names)])
    place = tuple(size if axis in axes else 1 for axis, size in enumerate(shape))
    operands, apply = _scale_and_shift(call, lambda name: call.operand(name, place))
    return Kernel(
        lambda x, *parameters: apply(_normalize(arithmetic, x, axes, epsilon), *parameters),
        [call.operand("x"), *operands],
    )


@operation("instance_norm", flops=passes(7))  # as layer_norm
def prepare_instance_norm(call: Call) -> Kernel:
    rank = len(call.shape("x"))
    axes = list(range(2, rank))
    epsilon, arithmetic = call.number("epsilon", 1e-5), call.arithmetic
    operands, apply = _scale_and_shift(call, lambda name: call.channel_vector(name, rank))
    return Kernel(
        lambda x, *parameters: apply(_normalize(arithmetic, x, axes, epsilon), *parameters),
        [call.operand("x"), *operands],
    )


@operation("batch_norm", flops=passes(4))  # the statistics are given: difference, factor, gamma, beta
def prepare_batch_norm(call: Call) -> Kernel:
    rank = len(call.shape("x"))
    epsilon, round_step = call.number("epsilon", 1e-5), call.arithmetic.round
    operands, apply = _scale_and_shift(call, lambda name: call.channel_vector(name, rank))

    def run(x: Tensor, mean: Tensor, variance: Tensor, *parameters: Tensor) -> Tensor:
        factor = round_step(torch.rsqrt(round_step(variance + epsilon)))
        return apply(round_step(round_step(x - mean) * factor), *parameters)

    statistics = [call.channel_vector(name, rank) for name in ("mean", "variance")]
    return Kernel(run, [call.operand("x"), *statistics, *operands])


@operation("l2_norm", flops=passes(3))  # square, sum, factor
def prepare_l2_norm(call: Call) -> Kernel:
    rank = len(call.shape("x"))
    axes = list(range(rank - 3, rank))
    epsilon, arithmetic = call.number("epsilon", 1e-6), call.arithmetic
    round_step = arithmetic.round

    def run(x: Tensor) -> Tensor:
        total = arithmetic.sum(round_step(x * x), axes)
        return x * round_step(torch.rsqrt(round_step(total + epsilon)))

    return Kernel(run, [call.operand("x")])


def _local_response_flops(node: Node, sizes: Sizes) -> int:
    """A square, a sum over `size` channels and the factor of them, for each element."""
    return (3 + sizes.parameter(node, "size")) * elements(sizes.operand(node, "x"))


@operation("local_response_norm", flops=_local_response_flops)
def prepare_local_response_norm(call: Call) -> Kernel:
    """x / (k + alpha / size * the sum of squares over `size` neighbouring channels) ** beta"""
    size, alpha = call.integer("size"), call.number("alpha", 1e-4)
    beta, base = call.number("beta", 0.75), call.number("k", 1.0)
    return Kernel(lambda x: functional.local_response_norm(x, size, alpha, beta, base), [call.operand("x")])


@operation("softmax", flops=passes(SOFTMAX))
def prepare_softmax(call: Call) -> Kernel:
    axis, softmax = call.integer("axis", -1), call.arithmetic.softmax
    return Kernel(lambda x: softmax(x, axis), [call.operand("x")])


@operation("reduce_log_sum_exp", flops=passes(4))  # largest, difference, exponential, sum
def prepare_log_sum_exp(call: Call) -> Kernel:
    """In float16 the largest element is taken out first, as an engine must do."""
    axes, keep = call.axes("axes", len(call.shape("x"))), call.flag("keep_dims")
    arithmetic = call.arithmetic
    round_step = arithmetic.round

    def run(x: Tensor) -> Tensor:
        largest = x.amax(axes, keepdim=True)
        total = arithmetic.sum(round_step(torch.exp(round_step(x - largest))), axes)
        result = round_step(torch.log(total)) + largest
        return result if keep else result.squeeze(tuple(axes))

    return Kernel(run, [call.operand("x")])
