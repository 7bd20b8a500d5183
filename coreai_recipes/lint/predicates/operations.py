"""Predicates of an operation: its type, its operands and where it stands."""

from math import isinf, isnan, prod

from coreai_recipes.lint.flow import MOVES, PRODUCTS, source_of
from coreai_recipes.lint.predicates.predicate import UNKNOWN, Answer, Item, predicate, yes
from coreai_recipes.lint.program import Operation, Value

ACTIVATIONS = frozenset({"gelu", "relu", "sigmoid", "silu", "tanh", "clip", "relu6", "softplus"})
COMPARISONS = frozenset({"equal", "greater", "greater_equal", "less", "less_equal", "not_equal"})
LEAST_NORMAL = 6e-5  # of float16; below it are subnormals, which may be taken as 0


@predicate
def type(item: Item, wanted: list[str]) -> Answer:
    return yes(item.op.type in wanted)


@predicate
def is_in_layer(item: Item, wanted: bool) -> Answer:
    """Behind the first product with a weight: what stands before it is made once a call."""
    return yes(item.flow.is_in_layer(item.op) is wanted)


@predicate
def picks_at_run_time(item: Item, wanted: bool) -> Answer:
    """Of what the run computes, by indices that it computes too."""
    x, indices = item.op.operand("x"), item.op.operand("indices")
    if x is None or indices is None or x.constant or indices.constant or _is_shape(x):
        return None
    return {"given": x.shape, "places": indices.shape}


@predicate
def indices_wider_than(item: Item, bits: int) -> Answer:
    """Indices of 32 bits into an axis that fewer reach."""
    operation = item.op
    x = operation.operand("x")
    if x is None or not x.shape or _is_shape(x):
        return None
    if operation.type == "topk":
        indices = operation.results[-1]
        axis = operation.integer("axis", -1)
    else:
        found = operation.operand("indices")
        if found is None:
            return None
        indices, axis = found, operation.integer("axis", 0)
    if not -len(x.shape) <= axis < len(x.shape):
        return None
    rows = x.shape[axis]
    return yes(indices.dtype == "int32" and 0 < rows <= 1 << bits, rows=rows, bits=bits)


@predicate
def table_over(item: Item, limit: int) -> Answer:
    """A gather of rows from a table (V, C) of so many bytes; experts, which have more axes, are no table."""
    x, indices = item.op.operand("x"), item.op.operand("indices")
    if x is None or indices is None or not x.constant or indices.constant or len(x.shape) != 2:
        return None
    return yes(x.dtype.startswith("float") and x.bytes > limit, table=x.shape, bytes=x.bytes)


@predicate
def repeats_for_product(item: Item, wanted: bool) -> Answer:
    """Repeats what goes into a product: K or V brought to the number of heads."""
    operation = item.op
    x = operation.operand("x", "values")
    if x is None or x.constant or not x.dtype.startswith("float") or len(x.shape) < 3:
        return None
    if operation.type == "tile":
        reps = operation.operand("reps")
        numbers = reps.numbers() if reps is not None else None
        if numbers is not None and all(number == 1 for number in numbers):
            return None
        if numbers is None and prod(operation.results[0].shape) == prod(x.shape):
            return None
    else:
        bound = operation.operands.get("values", ())
        if len(bound) < 2 or len({id(value) for value in bound}) > 1:
            return None
    return yes(any(_goes_into_product(item, result) for result in operation.results), given=x.shape)


def _goes_into_product(item: Item, value: Value) -> bool:
    waiting, seen = [value], 0
    while waiting and seen < 64:
        for reader in item.flow.function.users.get(waiting.pop(), []):
            seen += 1
            if reader.type in PRODUCTS or reader.type == "scaled_dot_product_attention":
                return True
            if reader.type in MOVES:
                waiting += reader.results
    return False


@predicate
def weight_is_constant(item: Item, wanted: bool) -> Answer:
    """Of a linear, or of a matmul one of whose operands is a matrix of the program's."""
    operation = item.op
    if operation.type == "linear":
        weight = operation.operand("weight")
    else:
        weight = next((v for v in (operation.operand("x"), operation.operand("y")) if v and v.constant), None)
    # one matrix: a stack of them is no one convolution
    matrices = 0 if weight is None or len(weight.shape) < 2 else prod(weight.shape[:-2])
    holds = weight is not None and weight.constant and matrices == 1
    return yes(holds is wanted, weight=weight.shape if weight is not None else ())


@predicate
def is_wide_gate(item: Item, width: int) -> Answer:
    """A 1x1 convolution of an MLP, over (1, C, 1, width): an activation is what becomes of it, or of it and a bias."""
    x, weight = item.op.operand("x"), item.op.operand("weight")
    if x is None or weight is None or len(x.shape) != 4 or x.shape[2] != 1 or x.shape[3] < width or x.shape[3] % width:
        return None
    if not weight.constant or weight.shape[2:] != (1, 1):
        return None
    users = item.flow.function.users
    readers = users.get(item.op.results[0], [])
    # Core AI's convolutions have no bias of their own
    biased = [reader for reader in readers if reader.type == "add" and any(value.constant for value in reader.values())]
    sums = [result for reader in biased for result in reader.results]
    readers = [*readers, *(reader for result in sums for reader in users.get(result, []))]
    return yes(any(reader.type in ACTIVATIONS for reader in readers), given=x.shape)


@predicate
def is_depthwise(item: Item, wanted: bool) -> Answer:
    x, groups = item.op.operand("x"), item.op.integer("groups", 1)
    return yes(x is not None and len(x.shape) > 1 and groups > 1 and groups == x.shape[1], groups=groups)


@predicate
def groups_not_in(item: Item, allowed: list[int]) -> Answer:
    groups = item.op.integer("groups", 1)
    return yes(groups not in allowed, groups=groups)


@predicate
def weight_at_run_time(item: Item, wanted: bool) -> Answer:
    weight = item.op.operand("weight")
    return yes(weight is not None and not weight.constant, weight=weight.shape if weight is not None else ())


@predicate
def reduced_over(item: Item, limit: int) -> Answer:
    x = item.op.operand("x")
    if x is None or not x.shape:
        return None
    axis = item.op.integer("axis", -1)
    size = x.shape[axis] if -len(x.shape) <= axis < len(x.shape) else 0
    return yes(size > limit, over=size, limit=limit)


@predicate
def any_axis_over(item: Item, limit: int) -> Answer:
    """An axis of what it is given or gives."""
    longest = max(
        (size for value in (*item.op.values(), *item.op.results) if not value.constant for size in value.shape),
        default=0,
    )
    return yes(longest > limit, longest=longest, limit=limit)


@predicate
def begins_inside_last_axis(item: Item, wanted: bool) -> Answer:
    """A slice of the last axis that does not begin at its begin."""
    x, begin = item.op.operand("x"), item.op.operand("begin")
    if x is None or begin is None or not x.shape or x.dtype != "float16":
        return None
    places = begin.numbers()
    if places is None:
        return {"offset": "a computed place"} if not begin.constant and len(x.shape) == 1 else None
    masks = item.op.operand("begin_mask")
    mask = masks.numbers() if masks is not None else None
    if len(places) != len(x.shape) or (mask and len(mask) == len(x.shape) and mask[-1]):
        return None
    return yes(places[-1] != 0, offset=places[-1])


@predicate
def operand_reaches(item: Item, limits: dict[str, float]) -> Answer:
    """By name of an operand: a magnitude that its values may reach."""
    answer: Answer = None
    for key, limit in limits.items():
        value = item.op.operand(key)
        if value is None:
            continue
        largest = item.ranges.largest(value)
        if largest is None:
            answer = UNKNOWN
        elif largest >= limit:
            return {"largest": _figure(largest), "limit": limit}
    return answer


@predicate
def result_reaches(item: Item, limit: float) -> Answer:
    largest = item.ranges.largest(item.op.results[0])
    return UNKNOWN if largest is None else yes(largest >= limit, largest=_figure(largest), limit=limit)


@predicate
def exponent_over(item: Item, limit: float) -> Answer:
    """An exponential of what neither its own maximum was subtracted from, nor anything else bounds."""
    x = item.op.operand("x")
    if x is None or item.ranges.bounds(x)[1] <= limit:
        return None
    seen = item.ranges.seen(x)
    return yes(seen is None or seen > limit, limit=limit)


@predicate
def is_square(item: Item, wanted: bool) -> Answer:
    operation = item.op
    x, y = operation.operand("x"), operation.operand("y")
    if operation.type == "square":
        return {}
    if x is None or y is None or x.constant:
        return None
    if operation.type == "mul":
        return yes(source_of(x) is source_of(y))
    return yes(y.number() == 2)


@predicate
def may_vanish(item: Item, wanted: bool) -> Answer:
    """Whether what a root is taken of can become 0 in float16."""
    x = item.op.operand("x")
    if x is None or x.dtype != "float16" or item.ranges.bounds(x)[0] >= LEAST_NORMAL:
        return None
    least = item.ranges.least(x)
    return yes(least is None or least < LEAST_NORMAL, least="nothing" if least is None else f"{least:.2g}")


@predicate
def masks_with_lowest(item: Item, how: str) -> Answer:
    """-inf, or the least of a float type, in a mask: brought in here (`once`), or added to what has one (`twice`)."""
    lows = item.flow.lows
    if how == "twice":
        return yes(item.op in lows.composed)
    return yes(item.op in lows.brought, lowest=lows.brought.get(item.op, 0.0))


@predicate
def relies_on_nan(item: Item, wanted: bool) -> Answer:
    """A comparison of a value with itself or with an infinity, or a NaN among the constants."""
    operation: Operation = item.op
    values = [value for value in operation.values() if value.constant and value.dtype.startswith("float")]
    found = [number for value in values for number in value.numbers() or ()]
    if any(isnan(number) for number in found):
        return {"what": "takes a NaN"}
    if operation.type not in COMPARISONS:
        return None
    if any(isinf(number) for number in found):
        return {"what": "compares with an infinity"}
    x, y = operation.operand("x"), operation.operand("y")
    same = x is not None and y is not None and source_of(x) is source_of(y) and x.dtype.startswith("float")
    return yes(same, what="compares a value with itself")


def _is_shape(value: Value) -> bool:
    return source_of(value).producer is not None and getattr(source_of(value).producer, "type", "") == "shape"


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
