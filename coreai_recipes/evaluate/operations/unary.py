"""Elementwise functions of one tensor, activations among them."""

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from coreai_recipes.evaluate.counting import nothing
from coreai_recipes.evaluate.element_types import CAST_NAMES, ELEMENT_TYPES
from coreai_recipes.evaluate.opset import Call, Kernel, operation, unary

# The first group turns float16 into float16, the second does not.
EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "round": torch.round,
    "sign": torch.sign,
}
INEXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}


def _register(name: str, function: Callable[[Tensor], Tensor], moves: bool) -> None:
    @operation(name, moves=moves)
    def prepare(call: Call) -> Kernel:
        return unary(call, function)


for _name, _function in EXACT.items():
    _register(_name, _function, moves=True)
for _name, _function in INEXACT.items():
    _register(_name, _function, moves=False)


def _after_epsilon(call: Call, default: float, function: Callable[[Tensor], Tensor]) -> Kernel:
    """function(x + epsilon)."""
    epsilon, round_step = call.number("epsilon", default), call.arithmetic.round
    return unary(call, lambda x: function(round_step(x + epsilon)))


@operation("rsqrt")
def prepare_rsqrt(call: Call) -> Kernel:
    return _after_epsilon(call, 1e-12, torch.rsqrt)


@operation("log")
def prepare_log(call: Call) -> Kernel:
    return _after_epsilon(call, 1e-45, torch.log)


@operation("inverse")
def prepare_inverse(call: Call) -> Kernel:
    return _after_epsilon(call, 1e-4, torch.reciprocal)


@operation("gelu")
def prepare_gelu(call: Call) -> Kernel:
    mode = call.text("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return unary(call, lambda x: x * torch.sigmoid(1.702 * x))
    approximate = "tanh" if mode == "TANH_APPROXIMATION" else "none"
    return unary(call, lambda x: functional.gelu(x, approximate=approximate))


@operation("clip", moves=True)
def prepare_clip(call: Call) -> Kernel:
    low, high = call.number("alpha"), call.number("beta")
    return unary(call, lambda x: x.clamp(low, high))


@operation("threshold", moves=True)
def prepare_threshold(call: Call) -> Kernel:
    low = call.number("alpha")
    return unary(call, lambda x: x.clamp(min=low))


@operation("thresholded_relu", moves=True)
def prepare_thresholded_relu(call: Call) -> Kernel:
    low = call.number("alpha")
    return unary(call, lambda x: torch.where(x >= low, x, 0.0))


@operation("leaky_relu")
def prepare_leaky_relu(call: Call) -> Kernel:
    slope = call.number("alpha")
    return unary(call, lambda x: functional.leaky_relu(x, slope))


@operation("clamped_relu")
def prepare_clamped_relu(call: Call) -> Kernel:
    slope, high = call.number("alpha"), call.number("beta")
    return unary(call, lambda x: functional.leaky_relu(x, slope).clamp(max=high))


@operation("elu")
def prepare_elu(call: Call) -> Kernel:
    scale = call.number("alpha")
    return unary(call, lambda x: functional.elu(x, scale))


@operation("linear_activation")
def prepare_linear_activation(call: Call) -> Kernel:
    factor, addend, round_step = call.number("alpha"), call.number("beta"), call.arithmetic.round
    return unary(call, lambda x: round_step(x * factor) + addend)


@operation("sigmoid_hard")
def prepare_sigmoid_hard(call: Call) -> Kernel:
    factor, addend, round_step = call.number("alpha"), call.number("beta"), call.arithmetic.round
    return unary(call, lambda x: (round_step(x * factor) + addend).clamp(0.0, 1.0))


@operation("scaled_tanh")
def prepare_scaled_tanh(call: Call) -> Kernel:
    outer, inner = call.number("alpha"), call.number("beta")
    return unary(call, lambda x: outer * torch.tanh(inner * x))


@operation("prelu")
def prepare_prelu(call: Call) -> Kernel:
    slope = call.channel_vector("alpha", len(call.shape("x")))
    return Kernel(lambda x, slope: torch.where(x > 0, x, x * slope), [call.operand("x"), slope])


@operation("softplus_parametric")
def prepare_softplus_parametric(call: Call) -> Kernel:
    rank = len(call.shape("x"))
    vectors = [call.channel_vector(name, rank) for name in ("alpha", "beta")]
    return Kernel(lambda x, outer, inner: outer * functional.softplus(inner * x), [call.operand("x"), *vectors])


@operation("cast", views=True, flops=nothing)
def prepare_cast(call: Call) -> Kernel:
    """Floats lose their fraction on the way to an integer; a cast between floats only rounds."""
    name = call.text("dtype", "")
    element_type = CAST_NAMES.get(name, name)
    if element_type not in ELEMENT_TYPES:
        call.fail(f"cannot cast to {name}")
    carrier = ELEMENT_TYPES[element_type].carrier
    if element_type == "uint16":
        return unary(call, lambda x: x.to(carrier) & 0xFFFF)
    return unary(call, lambda x: x.to(carrier))
