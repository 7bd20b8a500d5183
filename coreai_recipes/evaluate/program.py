"""A saved ML Program, ready to be run with torch."""

from collections.abc import Collection
from copy import copy
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from coreai_recipes.evaluate.constants import ConstantStore
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, TensorType
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.function import Function
from coreai_recipes.evaluate.graph import Graph, read_graph, signature_of
from coreai_recipes.evaluate.manner import manner_of
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.evaluate.precision import PRECISIONS, Precision, Rounding


class Program:
    """The functions of an .mlpackage, which share one copy of the weights and the states.

    `precision` is explained in `evaluate.precision`. With `stream_weights` a large weight is in memory only while an
    operation needs it; otherwise it is converted once and kept. Either way the rows of an embedding table are read
    from the file as they are needed. `without` names habits (`evaluate.habits`) that precision `engine` leaves out.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        precision: Precision = "float32",
        stream_weights: bool = False,
        without: Collection[str] = (),
    ) -> None:
        if precision not in PRECISIONS:
            raise EvaluationError(f"precision {precision} is not one of {', '.join(PRECISIONS)}")
        self.path = Path(path)
        self.precision: Precision = precision
        self._streams = stream_weights
        self._without = tuple(without)
        manner_of(precision, Rounding(), self._without)  # habits that there are not are refused before anything is read
        self._package = Package(self.path)
        self._store = ConstantStore()
        self._graphs: dict[str, Graph] = {}
        self._prepared: dict[str, Function] = {}

    def at(self, precision: Precision, without: Collection[str] = ()) -> "Program":
        """The same program in another precision: what was read of it serves both."""
        manner_of(precision, Rounding(), without)
        found = copy(self)
        found.precision, found._without, found._prepared = precision, tuple(without), {}
        return found

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions, the default one first."""
        others = sorted(name for name in self._package.functions if name != self.default_function)
        return (self.default_function, *others)

    @property
    def default_function(self) -> str:
        return self._package.default_function

    def function(self, name: str | None = None) -> Function:
        """The function of that name, or the default one; prepared at the first request."""
        name = self.default_function if name is None else name
        if name not in self._package.functions:
            raise EvaluationError(f"{self.path}: has no function {name}: its functions are {', '.join(self.functions)}")
        if name not in self._prepared:
            if name not in self._graphs:
                self._graphs[name] = read_graph(self._package, name)
            graph = self._graphs[name]
            self._prepared[name] = Function(graph, self._store, self.precision, self._streams, self._without)
        return self._prepared[name]

    def make_state(self) -> dict[str, Tensor]:
        """Zeros for each state by name: one state serves all functions."""
        found: dict[str, TensorType] = {}
        for name in self.functions:
            for state, kind in signature_of(self._package.functions[name])[1].items():
                if found.setdefault(state, kind) != kind:
                    raise EvaluationError(f"{self.path}: the state {state} differs between functions")
        try:
            return {
                name: torch.zeros(kind.shape, dtype=ELEMENT_TYPES[kind.element_type].carrier)
                for name, kind in found.items()
            }
        except (KeyError, RuntimeError) as error:  # an unknown type, a size that is none, or no memory
            raise EvaluationError(f"{self.path}: its states cannot be made: {str(error).splitlines()[0]}") from None
