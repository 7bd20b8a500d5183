"""Where, by the rules, a call leaves the engine and comes back.

Each operation has a unit by the rules, or none of its own (a view, a cast). What stands in front of the layers is made
in as few changes as what it needs allows; the layers run in the order in which they are written.
"""

from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.lint.flow import VIEWS, Flow
from coreai_recipes.lint.program import UNKNOWN, Function, Operation, Value

ENGINE, CPU = "engine", "cpu"
# What only names elements, and so runs wherever they are.
FREE = VIEWS | {"read_state", "write_state", "coreml_update_state", "split", "shape", "concat", "slice_by_index"}
NO_PATH = frozenset({
    "band_part", "cond", "mod", "non_zero", "one_hot", "reduce_prod", "while_loop",
    "logical_and", "logical_not", "logical_or", "logical_xor", "scatter", "scatter_along_axis", "scatter_nd",
})  # fmt: skip
TRIG = frozenset({"acos", "asin", "atan", "atanh", "cos", "cosh", "sin", "sinh", "tan"})
GATHERS = frozenset({"gather", "gather_along_axis", "gather_nd"})


@dataclass(frozen=True)
class Crossing:
    """One change of unit: the first value that is handed over."""

    function: str
    place: str
    from_: str
    to: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return {("from" if key == "from_" else key): value for key, value in found.items()} | {
            "shape": list(self.shape)
        }


def crossings_of(function: Function, flow: Flow) -> list[Crossing]:
    """In running order."""
    phases: dict[Value, int] = {}
    changes: dict[int, Value] = {}
    last = -1
    for operation in function.operations:
        if operation not in flow.front or not operation.results or operation.results[0].constant:
            continue
        needed = [(phases.get(value, -1), value) for value in operation.values() if not value.constant]
        phase, value = max(needed, key=lambda pair: pair[0], default=(-1, None))
        unit = unit_of(operation, flow)
        if unit is not None:
            earlier, phase = phase, _phase(phase, unit)
            last = max(last, phase)
            if value is not None and earlier not in (-1, phase):
                changes.setdefault(phase, value)
        phases.update(dict.fromkeys(operation.results, phase))
    found = [_crossing(function, value, CPU if phase % 2 == 0 else ENGINE) for phase, value in sorted(changes.items())]
    current = None if last == -1 else CPU if last % 2 == 0 else ENGINE
    for operation in function.operations:
        if operation in flow.front:
            continue
        unit = unit_of(operation, flow)
        if unit is None:
            continue
        if current not in (None, unit):
            handed = [value for value in operation.values() if not value.constant]
            if handed:
                found.append(_crossing(function, max(handed, key=_standing), unit))
        current = unit
    return found


def _standing(value: Value) -> int:
    """Where in running order a value is made: what is handed over is the newest."""
    return -1 if value.producer is None else value.producer.index


def _crossing(function: Function, value: Value, to: str) -> Crossing:
    return Crossing(function.name, value.name, CPU if to == ENGINE else ENGINE, to, value.shape)


def _phase(phase: int, unit: str) -> int:
    if phase == -1:
        return 0 if unit == CPU else 1
    return phase + (phase % 2 == (unit == CPU))


def unit_of(operation: Operation, flow: Flow) -> str | None:
    """Where the rules say that an operation runs, None for one that runs wherever its operands are."""
    if not operation.results or operation.results[0].constant:
        return None
    kind = operation.type
    if kind in NO_PATH or kind in TRIG:
        return CPU
    if kind in GATHERS:
        indices = operation.operand("indices")
        return CPU if indices is not None and not indices.constant else ENGINE
    result = operation.results[0]
    if UNKNOWN in result.shape or len(result.shape) > 5:
        return CPU
    if kind in FREE:
        return None
    if result in flow.exempt:
        return None
    return ENGINE if result.dtype == "float16" else CPU
