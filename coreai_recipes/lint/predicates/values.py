"""Predicates of a value: its type, its rank and its sizes."""

from coreai_recipes.lint.flow import VIEWS
from coreai_recipes.lint.predicates.predicate import Answer, Item, predicate, yes
from coreai_recipes.lint.program import UNKNOWN as ANY_SIZE


@predicate
def rank_over(item: Item, limit: int) -> Answer:
    return yes(len(item.it.shape) > limit, rank=len(item.it.shape))


@predicate
def dtype(item: Item, wanted: list[str]) -> Answer:
    return yes(item.it.dtype in wanted)


@predicate
def is_computed(item: Item, wanted: bool) -> Answer:
    """Whether the run makes it, and not the program's file."""
    return yes(item.value is not None and item.value.constant is not wanted)


@predicate
def is_flexible(item: Item, wanted: bool) -> Answer:
    """A size that a call decides, where it comes up first."""
    value = item.it
    if item.operation is not None and any(ANY_SIZE in operand.shape for operand in item.operation.values()):
        return None
    return yes(value.flexible or ANY_SIZE in value.shape)


@predicate
def is_island(item: Item, wanted: bool) -> Answer:
    return yes(item.it in item.flow.islands)


@predicate
def places_only(item: Item, wanted: bool) -> Answer:
    """Whether it does no more than say where: the bounds of a slice, the indices of a gather."""
    return yes((item.it in item.flow.exempt) is wanted)


@predicate
def last_axes_over(item: Item, limit: int) -> Answer:
    longest = max(item.it.shape[-2:], default=0)
    return yes(longest > limit, longest=longest, limit=limit)


@predicate
def channels_over(item: Item, limit: int) -> Answer:
    shape = item.it.shape
    return yes(len(shape) == 4 and shape[1] > limit, channels=shape[1] if len(shape) > 1 else 0)


@predicate
def last_axis_below(item: Item, limit: int) -> Answer:
    shape = item.it.shape
    return yes(bool(shape) and 0 <= shape[-1] < limit, last=shape[-1] if shape else 0)


@predicate
def padded_bytes_over(item: Item, limit: int) -> Answer:
    value = item.it
    known = ANY_SIZE not in value.shape
    return yes(known and value.padded_bytes > limit, bytes=value.bytes, padded=value.padded_bytes, limit=limit)


@predicate
def is_of_state(item: Item, wanted: bool) -> Answer:
    """Whether it is a state, or what was read of one and not cut out yet."""
    return yes((item.it in item.flow.states) is wanted)


@predicate
def lanes_unfilled(item: Item, wanted: bool) -> Answer:
    """A last axis that is no whole number of 64 bytes; single integers are let be."""
    value = item.it
    if "int" in value.dtype and value.count <= 1:
        return None
    bits = 32 if value.dtype in ("int32", "float32") else 16
    last = value.shape[-1] if value.shape else 1
    return yes(last > 0 and last * bits % 512 != 0, last=last, lanes=512 // bits)


@predicate
def is_of_operation(item: Item, wanted: bool) -> Answer:
    """Whether an operation gives it, and no caller."""
    return yes((item.operation is not None) is wanted)


@predicate
def is_of_product(item: Item, wanted: bool) -> Answer:
    """Whether a convolution gives it, or elementwise operations make it of nothing else."""
    return yes((item.it in item.flow.of_products) is wanted)


@predicate
def renames(item: Item, wanted: bool) -> Answer:
    """Whether it is the same elements under another shape."""
    return yes((item.op.type in VIEWS and item.op.type != "cast") is wanted)
