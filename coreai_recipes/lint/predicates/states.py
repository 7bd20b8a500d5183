"""Predicates of what a program keeps between calls, and of how it is read and written."""

from coreai_recipes.lint.flow import VIEWS, source_of
from coreai_recipes.lint.predicates.predicate import Answer, Item, predicate, yes
from coreai_recipes.lint.program import Shape, Value


def _states(item: Item) -> dict[str, Shape]:
    functions = item.program.functions if item.program else []
    return {state.name: state.shape for function in functions for state in function.states}


@predicate
def states_at_least(item: Item, count: int) -> Answer:
    found = _states(item)
    return yes(len(found) >= count, count=len(found))


@predicate
def states_differ(item: Item, wanted: bool) -> Answer:
    shapes = sorted(set(_states(item).values()))
    return yes(len(shapes) > 1, shapes=", ".join(str(list(shape)) for shape in shapes[:6]))


@predicate
def states_alike(item: Item, wanted: bool) -> Answer:
    """Whether some have one geometry, and could be one state: all but the number of layers, the first axis."""
    geometries = [shape[1:] for shape in _states(item).values()]
    return yes((len(set(geometries)) < len(geometries)) is wanted)


@predicate
def last_axis_no_multiple_of(item: Item, unit: int) -> Answer:
    last = item.it.shape[-1] if item.it.shape else 1
    return yes(last % unit != 0, last=last, unit=unit)


@predicate
def rows_no_multiple_of(item: Item, unit: int) -> Answer:
    rows = _rows(item.it.shape)
    return yes(rows % unit != 0, rows=rows, unit=unit)


@predicate
def rows_over(item: Item, limit: int) -> Answer:
    rows = _rows(item.it.shape)
    return yes(rows > limit, rows=rows, limit=limit)


def _rows(shape: Shape) -> int:
    return shape[-2] if len(shape) > 1 else 0


@predicate
def output_is_written(item: Item, wanted: bool) -> Answer:
    """An output of the function that is the very value which a state is given."""
    written = {_same(value): state.name for _, state, value in item.flow.writes}
    for output in item.function.outputs if item.function else ():
        if _same(output) in written:
            return {"output": output.name, "state": written[_same(output)]}
    return None


def _same(value: Value) -> Value:
    while value.producer is not None and value.producer.type == "identity":
        under = value.producer.operand("x")
        if under is None:
            break
        value = under
    return value


@predicate
def write_loses_another(item: Item, wanted: bool) -> Answer:
    """A state written by what was read of it before it was written another time: that write is lost."""
    flow = item.flow
    writes: dict[Value, list[int]] = {}
    for operation, state, value in flow.writes:
        read = _read_behind(value)
        earlier = writes.get(state, [])
        if read is not None and any(index > read for index in earlier):
            return {"state": state.name, "output": operation.name}
        writes.setdefault(state, []).append(operation.index)
    return None


def _read_behind(value: Value) -> int | None:
    """The place of the read that a written value is an update of."""
    while value.producer is not None:
        producer = value.producer
        if producer.type in ("read_state", "coreml_update_state"):
            return producer.index
        if producer.type != "slice_update" and producer.type not in VIEWS:
            return None
        under = producer.operand("x")
        if under is None:
            return None
        value = under
    return None


@predicate
def rows_written_over(item: Item, limit: int) -> Answer:
    """A slice_update of a state by so many rows at once."""
    x, update = item.op.operand("x"), item.op.operand("update")
    if x is None or update is None or x not in item.flow.states:
        return None
    rows = _rows(update.shape)
    return yes(rows > limit, rows=rows, limit=limit)


@predicate
def shifts_state(item: Item, wanted: bool) -> Answer:
    """A state that is given its own later rows with new ones behind them."""
    value = item.op.operand("data", "value")
    joined = source_of(value).producer if value is not None else None
    if joined is None or joined.type != "concat":
        return None
    parts = joined.operands.get("values", ())
    cut = source_of(parts[0]).producer if len(parts) > 1 else None
    if cut is None or cut.type not in ("slice_by_index", "slice_by_size"):
        return None
    under = cut.operand("x")
    return yes(under is not None and under in item.flow.states)
