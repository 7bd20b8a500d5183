"""How operations are computed in each precision: the arithmetic inside them, and what is done to a kernel."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.habits import habits_without
from coreai_recipes.evaluate.opset import Call, Kernel
from coreai_recipes.evaluate.precision import Arithmetic, Float16Arithmetic, Precision, RoundedArithmetic, Rounding


class Manner:
    """What `float32`, `rounded` and `strict` do: nothing to a kernel. `rounds`: float16 results are rounded."""

    def __init__(self, rounds: bool, inside: Arithmetic) -> None:
        self.rounds, self.inside = rounds, inside

    def adapt(self, call: Call, kernel: Kernel) -> Kernel:
        """The kernel as this precision runs it, the very same one where it changes nothing."""
        return kernel

    def settle(self, operation: str, value: Tensor) -> Tensor:
        """A rounded result in which there is an infinity or NaN."""
        return value


Adapt = Callable[[Call, Kernel], Kernel]
ADAPTED: dict[str, dict[str, Adapt]] = {}  # by habit and operation


def adapts(habit: str, *operations: str) -> Callable[[Adapt], Adapt]:
    """Register the decorated function as what `habit` makes of the kernels of `operations`."""

    def register(adapt: Adapt) -> Adapt:
        ADAPTED.setdefault(habit, {}).update(dict.fromkeys(operations, adapt))
        return adapt

    return register


class Engine(Manner):
    """Precision `engine`: the habits of `evaluate.habits`, each of which can be left out."""

    # what inf - inf and the like become, by P; any other NaN is +inf
    ZERO = frozenset({"add", "sub", "log", "rsqrt", "sqrt"})

    def __init__(self, rounding: Rounding, without: Iterable[str]) -> None:
        self.habits = habits_without(without)
        super().__init__(True, RoundedArithmetic() if "wide-sum" in self.habits else Float16Arithmetic(rounding))

    def adapt(self, call: Call, kernel: Kernel) -> Kernel:
        for habit, by_operation in ADAPTED.items():
            if habit in self.habits and call.node.type in by_operation:
                kernel = by_operation[call.node.type](call, kernel)
        return kernel

    def settle(self, operation: str, value: Tensor) -> Tensor:
        if "nan-logic" not in self.habits:
            return value
        return torch.where(value.isnan(), 0.0 if operation in self.ZERO else torch.inf, value)


def manner_of(precision: Precision, rounding: Rounding, without: Iterable[str] = ()) -> Manner:
    """What a precision does. Raises EvaluationError for habits that are not there to be left out."""
    from coreai_recipes.evaluate import engine as _habits  # noqa: F401  (fills ADAPTED)

    if precision == "engine":
        return Engine(rounding, without)
    if without := list(without):
        raise EvaluationError(f"precision {precision} has no habits: {', '.join(without)} can be left out of `engine`")
    if precision == "float32":
        return Manner(False, Arithmetic())
    return Manner(True, Float16Arithmetic(rounding) if precision == "strict" else RoundedArithmetic())
