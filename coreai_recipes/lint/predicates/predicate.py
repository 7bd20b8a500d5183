"""The registry of predicates, and what one is tried on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coreai_recipes.lint.flow import Flow
from coreai_recipes.lint.program import Function, Operation, Program, Value
from coreai_recipes.lint.ranges import Ranges
from coreai_recipes.lint.reading import LintInput


class Unknown:
    """The answer of a predicate that takes ranges which nobody knows."""


UNKNOWN = Unknown()
Details = dict[str, Any]
Answer = Details | Unknown | None


class Context:
    """What has been worked out of a subject's functions, once for all rules."""

    def __init__(self, subject: LintInput) -> None:
        self.subject = subject
        self._flows: dict[Function, Flow] = {}
        self._ranges: dict[Function, Ranges] = {}

    def flow(self, function: Function) -> Flow:
        if function not in self._flows:
            self._flows[function] = Flow(function)
        return self._flows[function]

    def ranges(self, function: Function) -> Ranges:
        if function not in self._ranges:
            self._ranges[function] = Ranges(function, self.subject.audit)
        return self._ranges[function]


@dataclass(slots=True)
class Item:
    """One thing that a rule looks at, with all that it stands in."""

    context: Context
    place: str
    program: Program | None = None
    function: Function | None = None
    operation: Operation | None = None
    value: Value | None = None
    file: tuple[str, int] | None = None

    @property
    def flow(self) -> Flow:
        assert self.function is not None
        return self.context.flow(self.function)

    @property
    def ranges(self) -> Ranges:
        assert self.function is not None
        return self.context.ranges(self.function)

    @property
    def op(self) -> Operation:
        assert self.operation is not None
        return self.operation

    @property
    def it(self) -> Value:
        assert self.value is not None
        return self.value


Predicate = Callable[[Item, Any], Answer]
PREDICATES: dict[str, Predicate] = {}
OF_TYPES = frozenset({"type"})


def predicate(function: Predicate) -> Predicate:
    """Register a predicate by its name."""
    PREDICATES[function.__name__] = function
    return function


def yes(holds: bool, **details: Any) -> Answer:
    return details if holds else None
