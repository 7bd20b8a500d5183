"""One function of a program, prepared once and called many times."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.evaluate.constants import ConstantStore
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, TensorType
from coreai_recipes.evaluate.errors import FAULTS, EvaluationError
from coreai_recipes.evaluate.graph import Graph
from coreai_recipes.evaluate.manner import manner_of
from coreai_recipes.evaluate.precision import Precision, Rounding
from coreai_recipes.evaluate.steps import STATE_SLOT, Steps

Watch = Callable[[str, Tensor, str], None]


class Function:
    """`outputs = function(inputs, state)`. Every float in it travels as float32, whatever its declared type.

    `inputs`, `outputs` and `states` map names to (element type, shape), -1 for a size that only the run decides.
    `overflowed` names, for the last call, the operations whose float16 value became infinite or NaN while their
    operands were finite, and `nans` those that gave NaN of operands without one, though `engine` turns it into
    something else. Both stay empty in precision float32.
    """

    def __init__(
        self,
        graph: Graph,
        store: ConstantStore,
        precision: Precision,
        stream_weights: bool,
        without: Collection[str] = (),
    ) -> None:
        self.name = graph.name
        self.inputs: dict[str, TensorType] = dict(graph.inputs)
        self.states: dict[str, TensorType] = dict(graph.states)
        self.outputs: dict[str, TensorType] = {
            name: graph.types[name]
            if name in graph.types
            else TensorType(graph.constants[name].element_type, graph.constants[name].shape)
            for name in graph.outputs
        }
        self._graph = graph
        rounding = Rounding()
        manner = manner_of(precision, rounding, without)
        self._rounds = manner.rounds
        self._prepared = Steps(graph, store, manner, rounding, stream_weights)
        self._results = [(name, self._prepared.slots[name]) for name in graph.outputs]
        self._is_checked = False

    @property
    def overflowed(self) -> list[str]:
        return list(self._prepared.overflowed)

    @property
    def nans(self) -> list[str]:
        return list(self._prepared.nans)

    def operation_counts(self) -> dict[str, int]:
        """How many operations of each type the function has, constants and compressed weights aside."""
        return dict(Counter(node.type for node in self._graph.nodes))

    def __call__(
        self,
        inputs: Mapping[str, Any],
        state: dict[str, Tensor] | None = None,
        watch: Watch | None = None,
        watch_names: set[str] | None = None,
    ) -> dict[str, Tensor]:
        """The outputs by name. `state` is the dictionary of `Program.make_state`; its entries are replaced or written.

        `watch(name, value, operation)` is told each result, or those in `watch_names`. A later operation may write
        into a value that it was given: what it keeps, it clones.
        """
        values = list(self._prepared.template)
        for name, tensor in self._checked_inputs(inputs).items():
            values[self._prepared.slots[name]] = tensor
        values[STATE_SLOT] = self._checked_state(state)
        self._prepared.overflowed.clear()
        self._prepared.nans.clear()
        self._prepared.rounding.saw_overflow = False
        with torch.no_grad():
            if watch is None and self._is_checked:
                self._run(values)
            else:
                self._run_and_look(values, watch, watch_names)
                self._is_checked = True
            copied = self._prepared.liveness.copied_outputs
            return {name: values[slot].clone() if name in copied else values[slot] for name, slot in self._results}

    def _run(self, values: list[Any]) -> None:
        index = 0
        try:
            for index, (run, operands, result, results, dead) in enumerate(self._prepared.steps):  # noqa: B007
                value = run(*[values[slot] for slot in operands])
                if results is None:
                    values[result] = value
                else:
                    for slot, part in zip(results, value, strict=True):
                        values[slot] = part
                for slot in dead:
                    values[slot] = None
        except FAULTS as error:
            raise self._fault(index, error) from error

    def _run_and_look(self, values: list[Any], watch: Watch | None, names: set[str] | None) -> None:
        """The same, one step at a time: each result is held against its declared type and shown to `watch`."""
        for index, (run, operands, result, results, dead) in enumerate(self._prepared.steps):
            try:
                value = run(*[values[slot] for slot in operands])
            except FAULTS as error:
                raise self._fault(index, error) from error
            node = self._graph.nodes[index]
            parts = [value] if results is None else list(value)
            for declared, slot, part in zip(node.results, results or (result,), parts, strict=False):
                _check_result(node.type, declared.name, TensorType(*declared[1:]), part)
                values[slot] = part
                if watch is not None and (names is None or declared.name in names):
                    watch(declared.name, part, node.type)
            for slot in dead:
                values[slot] = None

    def _fault(self, index: int, error: Exception) -> EvaluationError:
        node = self._graph.nodes[index]
        return EvaluationError(f"{node.type} {node.name}: {str(error).splitlines()[0] if str(error) else error!r}")

    def _checked_inputs(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        problems = [
            f"function {self.name} needs the input {name}, {_describe(kind)}"
            for name, kind in self.inputs.items()
            if name not in given
        ]
        problems += [
            f"function {self.name} has no input {name}: its inputs are {', '.join(self.inputs)}"
            for name in given
            if name not in self.inputs
        ]
        if problems:
            raise EvaluationError(*problems)
        return {name: self._checked_input(name, kind, given[name]) for name, kind in self.inputs.items()}

    def _checked_input(self, name: str, kind: TensorType, value: Any) -> Tensor:
        try:
            tensor = torch.as_tensor(value)
        except FAULTS:
            raise EvaluationError(f"function {self.name}: input {name} is not a tensor of numbers") from None
        carrier = ELEMENT_TYPES[kind.element_type].carrier
        same_kind = (tensor.is_floating_point(), tensor.dtype == torch.bool) == (
            carrier.is_floating_point,
            carrier == torch.bool,
        )
        if not same_kind or not _fits(tensor, kind.shape):
            found = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            raise EvaluationError(f"function {self.name}: input {name} is {found}, but must be {_describe(kind)}")
        tensor = tensor.to(carrier)
        return tensor.half().float() if kind.element_type == "float16" and self._rounds else tensor

    def _checked_state(self, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if not self.states:
            return {}
        if state is None:
            raise EvaluationError(
                f"function {self.name} has the states {', '.join(self.states)}: give it program.make_state()"
            )
        for name, kind in self.states.items():
            if name not in state:
                raise EvaluationError(f"function {self.name}: the state {name} is missing, {_describe(kind)}")
            if not _fits(state[name], kind.shape) or state[name].dtype != ELEMENT_TYPES[kind.element_type].carrier:
                found = f"{str(state[name].dtype).removeprefix('torch.')} {tuple(state[name].shape)}"
                raise EvaluationError(
                    f"function {self.name}: the state {name} is {found}, but must be {_describe(kind)} as "
                    "program.make_state() makes it"
                )
        return state


def _describe(kind: TensorType) -> str:
    return f"{kind.element_type} {kind.shape}".replace("-1", "any")


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tensor.dim() == len(shape) and all(
        declared in (-1, size) for declared, size in zip(shape, tensor.shape, strict=True)
    )


def _check_result(operation: str, name: str, kind: TensorType, value: Tensor) -> None:
    if not _fits(value, kind.shape):
        raise EvaluationError(f"{operation} {name}: is {tuple(value.shape)}, but the program declares {kind.shape}")
    if value.dtype != ELEMENT_TYPES[kind.element_type].carrier:
        raise EvaluationError(f"{operation} {name}: is {value.dtype}, but the program declares {kind.element_type}")
