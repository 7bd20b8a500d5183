"""Elementwise functions of two tensors or three, with broadcasting."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.evaluate.opset import Call, Kernel, operation


def _floor_divide(x: Tensor, y: Any) -> Tensor:
    return torch.floor(x / y) if x.is_floating_point() else torch.floor_divide(x, y)


def _real_divide(x: Tensor, y: Any) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _maximum(x: Tensor, y: Any) -> Tensor:
    return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)


def _minimum(x: Tensor, y: Any) -> Tensor:
    return torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp(max=y)


COMMUTATIVE: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "maximum": _maximum,
    "minimum": _minimum,
    "mul": torch.mul,
    "not_equal": torch.ne,
}
ORDERED: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "floor_div": _floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "mod": torch.remainder,
    "pow": torch.pow,
    "real_div": _real_divide,
    "sub": torch.sub,
}
LOGICAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}
MOVING = {"maximum", "minimum"}


def _number(call: Call, name: str, other: str) -> float | int | None:
    """The constant operand `name` as a Python number, where the result then still has the shape of `other`."""
    constant = call.constant(name)
    if constant is None or any(size != 1 for size in constant.shape) or len(constant.shape) > len(call.shape(other)):
        return None
    number = constant.carried().item()
    return None if isinstance(number, bool) else number


def _register(name: str, function: Callable[[Tensor, Any], Tensor], commutes: bool) -> None:
    @operation(name, moves=name in MOVING)
    def prepare(call: Call) -> Kernel:
        # A Python number costs torch less than a tensor of one element.
        right = _number(call, "y", "x")
        if right is not None:
            return Kernel(lambda x: function(x, right), [call.operand("x")])
        left = _number(call, "x", "y") if commutes else None
        if left is not None:
            return Kernel(lambda y: function(y, left), [call.operand("y")])
        return Kernel(function, [call.operand("x"), call.operand("y")])


for _name, _function in COMMUTATIVE.items():
    _register(_name, _function, commutes=True)
for _name, _function in ORDERED.items():
    _register(_name, _function, commutes=False)


def _register_logical(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operation(name)
    def prepare(call: Call) -> Kernel:
        return Kernel(function, [call.operand("x"), call.operand("y")])


for _name, _function in LOGICAL.items():
    _register_logical(_name, _function)


@operation("select", moves=True)
def prepare_select(call: Call) -> Kernel:
    return Kernel(torch.where, [call.operand("cond"), call.operand("a"), call.operand("b")])
