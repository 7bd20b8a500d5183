"""Sizes that a type leaves open although the program decides them: Core AI's types do not say how long a slice at a
computed place is.

    %86 = concat(slot + 1, 2, 288, 32)
    %87 = slice(x, begin=concat(slot, 0, 0, 0), end=%86) : tensor<?x?x?x?xf16>    (1, 2, 288, 32) by its bounds

Bounds are followed as sums of a value that a call computes and a number.
"""

from coreai_recipes.lint.program import UNKNOWN, Operation, Shape, Value

Term = tuple[Value | None, float]  # a computed value, None for none, and what is added to it
MOST_TERMS = 16
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
# what gives a shape by those of its operands alone
ELEMENTWISE = frozenset({
    "abs", "add", "cast", "cos", "equal", "erf", "exp", "gelu", "greater", "log", "logical_and", "logical_not",
    "logical_or", "logical_xor", "maximum", "minimum", "mod", "mul", "not_equal", "pow", "real_div", "relu", "round",
    "rsqrt", "select", "sigmoid", "silu", "sin", "softmax", "sqrt", "sub", "tanh",
})  # fmt: skip
OPERANDS = ("x", "y", "cond", "a", "b")


class Sizes:
    """The small vectors of integers of one function, in running order, as terms."""

    def __init__(self) -> None:
        self._terms: dict[Value, list[Term]] = {}

    def follow(self, operation: Operation) -> None:
        """Keep what a result is, where it is a bound; and its numbers, where it has no computed part."""
        if len(operation.results) != 1 or operation.results[0].dtype not in INTEGERS:
            return
        (result,) = operation.results
        if len(result.shape) > 1 or not 0 < result.count <= MOST_TERMS:
            return
        terms = self._made(operation)
        if terms is None or len(terms) != result.count:
            return
        self._terms[result] = terms
        if all(base is None for base, _ in terms):
            result.literal = tuple(number for _, number in terms)

    def shape_of(self, operation: Operation, value: Value) -> Shape:
        """The shape of a result, by what is known of its operands; open sizes stay where nothing is."""
        found: Shape | None = None
        if operation.type == "slice_by_index":
            found = self._slice(operation)
        elif operation.type in ELEMENTWISE:
            shapes = [bound.shape for key in OPERANDS if (bound := operation.operand(key)) is not None]
            found = _broadcast(shapes, len(value.shape))
        elif operation.type == "transpose":
            x, order = operation.operand("x"), self._numbers(operation.operand("perm"))
            if x is not None and order is not None and sorted(order) == list(range(len(x.shape))):
                found = tuple(x.shape[axis] for axis in order)
        if found is None or len(found) != len(value.shape):
            return value.shape
        return tuple(size if size != UNKNOWN else other for size, other in zip(value.shape, found, strict=True))

    def _of(self, value: Value | None) -> list[Term] | None:
        if value is None:
            return None
        if value.literal is not None:
            numbers = value.numbers()
            return None if numbers is None or len(numbers) > MOST_TERMS else [(None, number) for number in numbers]
        if value in self._terms:
            return self._terms[value]
        return [(value, 0.0)] if value.count == 1 and value.dtype in INTEGERS else None

    def _numbers(self, value: Value | None) -> list[int] | None:
        terms = self._of(value)
        if terms is None or any(base is not None for base, _ in terms):
            return None
        return [int(number) for _, number in terms]

    def _made(self, operation: Operation) -> list[Term] | None:
        if operation.type == "concat":
            parts = [self._of(value) for value in operation.operands.get("values", ())]
            return None if None in parts else [term for part in parts if part is not None for term in part]
        x, y = self._of(operation.operand("x")), self._of(operation.operand("y"))
        if operation.type in ("reshape", "cast", "expand_dims", "squeeze"):
            return x
        if operation.type not in ("add", "sub") or not x or not y:
            return None
        x, y = (x * len(y) if len(x) == 1 else x), (y * len(x) if len(y) == 1 else y)
        if len(x) != len(y):
            return None
        sums = [_sum(one, other, operation.type == "sub") for one, other in zip(x, y, strict=True)]
        return None if None in sums else [term for term in sums if term is not None]

    def _slice(self, operation: Operation) -> Shape | None:
        x = operation.operand("x")
        begin, end, stride = (self._of(operation.operand(key)) for key in ("begin", "end", "stride"))
        if x is None or begin is None or end is None or stride is None or any(term != (None, 1.0) for term in stride):
            return None
        if not len(begin) == len(end) == len(x.shape):
            return None
        return tuple(map(_length, begin, end, x.shape))


def _sum(one: Term, other: Term, is_minus: bool) -> Term | None:
    """None for what is a sum of two computed values."""
    if is_minus:
        return None if other[0] is not None else (one[0], one[1] - other[1])
    if one[0] is not None and other[0] is not None:
        return None
    return one[0] or other[0], one[1] + other[1]


def _length(begin: Term, end: Term, size: int) -> int:
    """Of a slice along an axis of `size`."""
    if begin[0] is not end[0]:
        return UNKNOWN
    if begin[0] is not None:
        return max(0, int(end[1] - begin[1]))
    if size == UNKNOWN:
        return UNKNOWN
    first, last = (min(max(number + size if number < 0 else number, 0), size) for number in (begin[1], end[1]))
    return max(0, int(last - first))


def _broadcast(shapes: list[Shape], rank: int) -> Shape | None:
    """None where a size is open."""
    if not shapes or any(UNKNOWN in shape for shape in shapes):
        return None
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    if any(len(shape) != rank for shape in padded):
        return None
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))
