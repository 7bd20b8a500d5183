"""The operations that can be evaluated, and how one of a program is handed to the code that prepares it.

An operation is prepared once: `prepare(call)` reads its constant parameters and returns a `Kernel`, a function of
tensors and the operands that it is called with at each run.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from coreai_recipes.evaluate.constants import Constant, Kept
from coreai_recipes.evaluate.counting import Flops, Reads, each_result
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.precision import Arithmetic

MOST_UNDECLARED = 1 << 28  # elements of a value whose size only the run decides


class Result(NamedTuple):
    """One declared result of an operation; an unknown size in `shape` is -1."""

    name: str
    element_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """An operation of the program: operands are names of values, or constants written in place."""

    type: str
    operands: dict[str, list[str | Constant]]
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        return self.results[0].name if self.results else str(self.operands.get("input", ["?"])[0])

    def value_names(self) -> list[str]:
        """The values that it reads, in no particular order."""
        return [name for names in self.operands.values() for name in names if isinstance(name, str)]


class Operand(NamedTuple):
    """What a kernel is called with: a value by name, or a constant in the shape and the form that the kernel wants."""

    source: str | Constant
    shape: tuple[int, ...]
    kept: Kept = "carried"


class Kernel(NamedTuple):
    """`run(*operands)` returns the result, or a sequence of them where the operation declares several."""

    run: Callable[..., Any]
    operands: Sequence[Operand]


class Call:
    """One operation of the program as its `prepare` sees it."""

    def __init__(
        self,
        node: Node,
        constants: dict[str, Constant],
        shapes: dict[str, tuple[int, ...]],
        arithmetic: Arithmetic,
        may_overwrite: bool,
        counts_from_end: bool,
        streams: bool,
    ) -> None:
        """`may_overwrite`: nobody else reads the operand x any more. `counts_from_end`: a negative index is valid.
        `streams`: large constants are not to stay in memory.
        """
        self.node = node
        self.arithmetic = arithmetic
        self.may_overwrite = may_overwrite
        self.counts_from_end = counts_from_end
        self.streams = streams
        self._constants = constants
        self._shapes = shapes

    @property
    def result_shape(self) -> tuple[int, ...]:
        return self.node.results[0].shape

    @property
    def result_type(self) -> torch.dtype:
        return ELEMENT_TYPES[self.node.results[0].element_type].carrier

    def fail(self, problem: str) -> NoReturn:
        raise EvaluationError(f"{self.node.type} {self.node.name}: {problem}")

    def check_size(self, sizes: Iterable[float]) -> None:
        """Raise before memory is taken for a result that is larger than the one that the program declares."""
        declared, size = self.result_shape, math.prod(sizes)
        most = MOST_UNDECLARED if any(each < 0 for each in declared) else math.prod(declared)
        if size > most:
            self.fail(f"has {size:.0f} elements, but the program declares {declared}")

    def has(self, name: str) -> bool:
        return bool(self.node.operands.get(name))

    def source(self, name: str) -> str | Constant:
        """The one value that operand `name` is bound to: a constant where it is one, else its name."""
        if not self.has(name):
            self.fail(f"has no operand {name}")
        return self._resolve(self.node.operands[name][0])

    def _resolve(self, source: str | Constant) -> str | Constant:
        return self._constants.get(source, source) if isinstance(source, str) else source

    def _operand(self, source: str | Constant) -> Operand:
        source = self._resolve(source)
        return Operand(source, self._shapes[source] if isinstance(source, str) else source.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.operand(name).shape

    def operand(self, name: str, view: tuple[int, ...] | None = None) -> Operand:
        """Operand `name`; a constant can be asked for in another shape of as many elements."""
        found = self._operand(self.source(name))
        return found if view is None else Operand(found.source, view)

    def operand_list(self, name: str) -> list[Operand]:
        return [self._operand(source) for source in self.node.operands.get(name, [])]

    def constant(self, name: str) -> Constant | None:
        """The constant that operand `name` is, or None where the run computes it or it is not given."""
        if not self.has(name):
            return None
        source = self.source(name)
        return None if isinstance(source, str) else source

    def _parameter(self, name: str) -> Constant | None:
        if not self.has(name):
            return None
        found = self.constant(name)
        if found is None:
            self.fail(f"{name} is computed by the program, but only a constant can be evaluated")
        return found

    def numbers(self, name: str) -> list[float] | None:
        """The values of a constant parameter as Python numbers, or None where it is not given."""
        found = self._parameter(name)
        return None if found is None else found.carried().tolist()

    def integers(self, name: str) -> list[int] | None:
        found = self.numbers(name)
        return None if found is None else [int(value) for value in found]

    def flags(self, name: str) -> list[bool] | None:
        found = self.numbers(name)
        return None if found is None else [bool(value) for value in found]

    def number(self, name: str, default: float | None = None) -> float:
        found = self.numbers(name)
        if not found:
            if default is None:
                self.fail(f"has no {name}")
            return default
        return found[0]

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self.number(name, default))

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.number(name, default))

    def text(self, name: str, default: str) -> str:
        found = self._parameter(name)
        return getattr(found, "texts", (default,))[0] if found is not None else default

    def axes(self, name: str, rank: int) -> list[int]:
        """A constant list of axes, counted from the front; all of them where it is not given."""
        found = self.integers(name)
        return list(range(rank)) if found is None else [axis % rank for axis in found]

    def channel_vector(self, name: str, rank: int) -> Operand:
        """A constant of C values as (1, C, 1, ...) of `rank` dimensions."""
        found = self.operand(name)
        size = found.shape[0] if found.shape else 1
        return Operand(found.source, (1, size) + (1,) * (rank - 2))


Prepare = Callable[[Call], Kernel]


class Operation(NamedTuple):
    """A registered operation.

    `moves`: its results are float16 whenever its operands are, so that there is nothing to round.
    `views`: its result may share memory with an operand.
    `flops`: its arithmetic. `reads`: how much of x. `updates`: what it is given, and what it puts into it, which in a
    state happens in place.
    """

    prepare: Prepare
    moves: bool
    views: bool
    flops: Flops
    reads: Reads
    updates: tuple[str, str] | None


OPERATIONS: dict[str, Operation] = {}


def operation(
    *names: str,
    moves: bool = False,
    views: bool = False,
    flops: Flops = each_result,
    reads: Reads = "all",
    updates: tuple[str, str] | None = None,
) -> Callable[[Prepare], Prepare]:
    """Register the decorated function as what prepares the operations `names`."""

    def register(prepare: Prepare) -> Prepare:
        for name in names:
            if name in OPERATIONS:
                raise ValueError(f"operation {name} is registered twice")
            OPERATIONS[name] = Operation(prepare, moves, views, flops, reads, updates)
        return prepare

    return register


def unary(call: Call, function: Callable[[Tensor], Any]) -> Kernel:
    """A kernel of the operand x alone."""
    return Kernel(function, [call.operand("x")])
