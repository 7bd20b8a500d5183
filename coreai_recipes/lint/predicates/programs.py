"""Predicates of a function, a program or a file as a whole."""

from coreai_recipes.lint.crossings import crossings_of
from coreai_recipes.lint.predicates.predicate import Answer, Item, predicate, yes


@predicate
def bytes_over(item: Item, limit: int) -> Answer:
    assert item.file is not None
    return yes(item.file[1] > limit, bytes=item.file[1])


@predicate
def operations_over(item: Item, limit: int) -> Answer:
    assert item.function is not None
    count = sum(1 for operation in item.function.operations if not operation.type.startswith("constexpr_"))
    return yes(count > limit, count=count, limit=limit)


@predicate
def functions_over(item: Item, limit: int) -> Answer:
    count = len(item.program.functions) if item.program else 0
    return yes(count > limit, count=count, limit=limit)


@predicate
def parameters_below(item: Item, limit: int) -> Answer:
    """Weights in weight.bin, those of several functions once."""
    found: dict[object, int] = {}
    for function in item.program.functions if item.program else ():
        values = [*function.constants, *(v for operation in function.operations for v in operation.values())]
        found |= {value.blob: value.count for value in values if value.blob is not None}
    count = sum(found.values())
    return yes(0 < count < limit, parameters=count, limit=limit)


@predicate
def crossings_over(item: Item, limit: int) -> Answer:
    assert item.function is not None
    found = crossings_of(item.function, item.flow)
    return yes(len(found) > limit, count=len(found), limit=limit)
