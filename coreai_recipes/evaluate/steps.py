"""Turns a graph into steps: functions over numbered slots, with everything that can be known known beforehand."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from coreai_recipes.evaluate import operations as _catalogue  # noqa: F401  (fills the registry)
from coreai_recipes.evaluate.constants import Constant, ConstantStore, Kept
from coreai_recipes.evaluate.errors import FAULTS, EvaluationError
from coreai_recipes.evaluate.graph import READ_STATE, STATE_OPERATIONS, UPDATE_STATE, Graph, state_of, written_value
from coreai_recipes.evaluate.liveness import Liveness, analyse
from coreai_recipes.evaluate.manner import Manner
from coreai_recipes.evaluate.opset import OPERATIONS, Call, Kernel, Node, Operand
from coreai_recipes.evaluate.precision import Arithmetic, Rounding, has_nan, is_finite

# The dictionary of states travels through the program in the first slot.
STATE_SLOT = 0
Run = Callable[..., Any]


class Step(NamedTuple):
    """values[result] = run(*values[operands]); `results` are the slots where there is not exactly one result."""

    run: Run
    operands: tuple[int, ...]
    result: int
    results: tuple[int, ...] | None
    dead: tuple[int, ...]


class Steps:
    """The steps of a function. `template` has one entry a slot, filled where a constant stays in memory."""

    def __init__(
        self, graph: Graph, store: ConstantStore, manner: Manner, rounding: Rounding, stream_weights: bool
    ) -> None:
        self.graph = graph
        self.liveness: Liveness = analyse(graph)
        self.rounding = rounding
        self.overflowed: list[str] = []
        self.nans: list[str] = []
        self.template: list[Any] = [None]
        self.slots: dict[str, int] = {}
        self._store = store
        self._manner = manner
        self._streams = stream_weights
        self._exact = Arithmetic()
        self._constant_slots: dict[tuple[int, tuple[int, ...], Kept], int] = {}
        self._shapes = {name: kind.shape for name, kind in graph.types.items()}
        for name in graph.inputs:
            self.slots[name] = self._new_slot(None)
        self.steps = [self._step(index, node) for index, node in enumerate(graph.nodes)]
        for name in graph.outputs:
            if name in graph.constants:
                self.slots[name] = self._slot(Operand(graph.constants[name], graph.constants[name].shape))

    def _new_slot(self, value: Tensor | None) -> int:
        self.template.append(value)
        return len(self.template) - 1

    def _slot(self, operand: Operand) -> int:
        if isinstance(operand.source, str):
            return self.slots[operand.source]
        key = id(operand.source), operand.shape, operand.kept
        if key not in self._constant_slots:
            self._constant_slots[key] = self._new_slot(self._store.tensor(operand.source, operand.shape, operand.kept))
        return self._constant_slots[key]

    def _step(self, index: int, node: Node) -> Step:
        try:
            return self._prepare(index, node)
        except EvaluationError:
            raise
        except FAULTS as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EvaluationError(f"{node.type} {node.name}: {reason}") from error

    def _prepare(self, index: int, node: Node) -> Step:
        kernel = self._state_kernel(index, node) if node.type in STATE_OPERATIONS else self._kernel(index, node)
        run, slots = self._stream(kernel)
        if node.type in STATE_OPERATIONS:
            slots = (STATE_SLOT, *slots)
        results = tuple(self._new_slot(None) for _ in node.results)
        self.slots.update({result.name: slot for result, slot in zip(node.results, results, strict=True)})
        # A write has no result; the scratch slot that it gets is never read.
        first = results[0] if results else self._new_slot(None)
        dead = tuple(self.slots[name] for name in self.liveness.dead_after[index])
        return Step(run, slots, first, results if len(results) > 1 else None, dead)

    def _kernel(self, index: int, node: Node) -> Kernel:
        halves = self._manner.rounds and any(result.element_type == "float16" for result in node.results)
        call = Call(
            node,
            self.graph.constants,
            self._shapes,
            self._manner.inside if halves else self._exact,
            may_overwrite=index in self.liveness.overwriting,
            counts_from_end=self.graph.opset < 7,
            streams=self._streams,
        )
        registered = OPERATIONS[node.type]
        kernel = registered.prepare(call)
        if not halves:
            return kernel
        adapted = self._manner.adapt(call, kernel)
        if registered.moves and adapted is kernel:
            return kernel
        return Kernel(self._rounded(adapted.run, node), adapted.operands)

    def _rounded(self, run: Run, node: Node) -> Run:
        """The kernel with its float16 results rounded, noting where it overflows and where NaN begins."""
        rounding, settle, name = self.rounding, self._manner.settle, node.name
        halves = [result.element_type == "float16" for result in node.results]

        def run_and_round(*operands: Any) -> Any:
            value = run(*operands)
            if isinstance(value, list | tuple):
                value = [rounding.round(part) if half else part for part, half in zip(value, halves, strict=True)]
            else:
                value = rounding.round(value)
            if rounding.saw_overflow:
                rounding.saw_overflow = False
                if all(is_finite(operand) for operand in operands):
                    self.overflowed.append(name)
                parts = value if isinstance(value, list) else [value]
                if any(map(has_nan, parts)) and not any(map(has_nan, operands)):
                    self.nans.append(name)
                parts = [settle(node.type, part) if half else part for part, half in zip(parts, halves, strict=True)]
                value = parts if isinstance(value, list) else parts[0]
            return value

        return run_and_round

    def _stream(self, kernel: Kernel) -> tuple[Run, tuple[int, ...]]:
        """The kernel and its slots; with streamed weights, large constants are read for the call and then dropped."""
        streamed: list[tuple[int, Constant, tuple[int, ...]]] = []
        kept: list[Operand] = []
        for place, operand in enumerate(kernel.operands):
            source = operand.source
            if self._streams and not isinstance(source, str) and source.is_large:
                streamed.append((place, source, operand.shape))
            else:
                kept.append(operand)
        slots = tuple(self._slot(operand) for operand in kept)
        if not streamed:
            return kernel.run, slots
        run = kernel.run

        def run_with_weights(*values: Any) -> Any:
            operands = list(values)
            for place, constant, shape in streamed:
                operands.insert(place, constant.carried().view(shape))
            return run(*operands)

        return run_with_weights, slots

    def _state_kernel(self, index: int, node: Node) -> Kernel:
        """The kernel takes the dictionary of states before its operands."""
        state = state_of(node)
        if node.type == READ_STATE:
            return Kernel(lambda states: states[state], [])
        value = written_value(node)
        source = self.graph.constants.get(value, value) if isinstance(value, str) else value
        operand = Operand(source, self.graph.states[state].shape)
        copies = index in self.liveness.copied_into_state
        returns = node.type == UPDATE_STATE

        def write(states: dict[str, Tensor], value: Tensor) -> Tensor | None:
            states[state] = value = value.clone() if copies else value
            return value if returns else None

        return Kernel(write, [operand])
