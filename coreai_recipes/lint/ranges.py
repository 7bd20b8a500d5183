"""How large values can become: by construction where the program itself says so, else by the bundle's audit.

An interval for each value, in running order; what is not listed here may be anything. A quotient by its own largest
magnitude, and what its own maximum was subtracted from, are told from any other.
"""

from collections.abc import Callable
from math import exp, inf, isfinite, sqrt

from coreai_recipes.lint.flow import VIEWS, source_of
from coreai_recipes.lint.program import Function, Operation, Value
from coreai_recipes.manifest.audit import Audit

Interval = tuple[float, float]

ANYTHING: Interval = (-inf, inf)
SIGNED, SHARE, NOT_NEGATIVE = (-1.0, 1.0), (0.0, 1.0), (0.0, inf)
# What the function itself bounds, whatever it is given.
BOUNDED: dict[str, Interval] = {
    "softmax": SHARE, "sigmoid": SHARE, "sigmoid_hard": SHARE, "one_hot": SHARE, "tanh": SIGNED, "sin": SIGNED,
    "cos": SIGNED, "erf": SIGNED, "softsign": SIGNED, "l2_norm": SIGNED, "sign": SIGNED, "relu6": (0.0, 6.0),
    "equal": SHARE, "not_equal": SHARE, "less": SHARE, "less_equal": SHARE, "greater": SHARE, "greater_equal": SHARE,
    "logical_and": SHARE, "logical_or": SHARE, "logical_not": SHARE, "logical_xor": SHARE,
    "rsqrt": NOT_NEGATIVE, "softplus": NOT_NEGATIVE, "square": NOT_NEGATIVE, "shape": NOT_NEGATIVE,
}  # fmt: skip
# What gives some of the elements that it is given, or others between them.
KEEPS = VIEWS | {
    "gather", "gather_along_axis", "gather_nd", "reduce_max", "reduce_min", "reduce_mean", "reverse", "slice_by_index",
    "slice_by_size", "split", "tile", "topk", "avg_pool", "max_pool", "read_state",
}  # fmt: skip
JOINS = {"concat": ("values",), "stack": ("values",), "select": ("a", "b"), "slice_update": ("x", "update")}


class Ranges:
    """The ranges of one function's values."""

    def __init__(self, function: Function, audit: Audit | None) -> None:
        self._audited = audit.functions.get(function.name, {}) if audit is not None else {}
        self._found: dict[Value, Interval] = {}
        # by a value m: those whose elements, or whose magnitudes, none exceeds m
        self._tops: dict[Value, frozenset[Value]] = {}
        self._caps: dict[Value, frozenset[Value]] = {}
        # quotients by their own largest magnitude, and their squares: the mean of n of these is at least 1 / n
        self._units: set[Value] = set()
        self._unit_squares: set[Value] = set()
        for operation in function.operations:
            self._follow(operation)

    def bounds(self, value: Value) -> Interval:
        """By construction."""
        found = self._found.get(value)
        if found is None:
            found = self._found[value] = _of_constant(value) if value.constant else ANYTHING
        return found

    def largest(self, value: Value) -> float | None:
        """The largest magnitude, None where nobody knows: what the program's form bounds, or what the audit saw."""
        low, high = self.bounds(value)
        built = max(abs(low), abs(high))
        seen = self._audited.get(value.name)
        if seen is not None:
            return min(built, seen.largest)
        return built if isfinite(built) else None

    def seen(self, value: Value) -> float | None:
        """The largest magnitude that the audit saw."""
        found = self._audited.get(value.name)
        return None if found is None else found.largest

    def least(self, value: Value) -> float | None:
        """The least magnitude that is not zero, as the audit saw it."""
        seen = self._audited.get(value.name)
        return None if seen is None else seen.least

    def _follow(self, operation: Operation) -> None:
        kind = operation.type
        self._follow_tops(operation)
        interval = ANYTHING
        if kind in BOUNDED:
            interval = BOUNDED[kind]
        elif kind == "reduce_mean" and (mean := self.mean_of_squares(operation)) is not None:
            interval = mean
        elif kind in KEEPS:
            under = operation.operand("x", "values", "input")
            interval = ANYTHING if under is None or under.is_state else self.bounds(under)
        elif kind in JOINS:
            parts = [self.bounds(value) for key in JOINS[kind] for value in operation.operands.get(key, ())]
            interval = (min(low for low, _ in parts), max(high for _, high in parts)) if parts else ANYTHING
        elif kind in RULES:
            interval = _checked(RULES[kind](self, operation))
        for result in operation.results:
            if not result.constant:
                self._found[result] = interval

    def _follow_tops(self, operation: Operation) -> None:
        """Keep what a result is never below: the maximum of something, however it was made one."""
        if not operation.results:
            return
        result, under = operation.results[0], operation.operand("x", "values")
        if under is None:
            return
        tops, caps = self._tops.get(under, frozenset()), self._caps.get(under, frozenset())
        if operation.type == "reduce_max":
            source = source_of(under)
            tops |= {source}
            if source.producer is not None and source.producer.type == "abs":
                capped = source.producer.operand("x")
                caps |= frozenset() if capped is None else {source_of(capped)}
        elif operation.type == "maximum":
            other = operation.operand("y")
            if other is not None:
                tops, caps = (
                    tops | self._tops.get(other, frozenset()) | {source_of(under), source_of(other)},
                    caps | self._caps.get(other, frozenset()),
                )
        elif operation.type == "add":
            other = operation.operand("y")
            if other is None or self.bounds(other)[0] < 0:
                return
        elif operation.type not in VIEWS and operation.type not in ("tile", "concat"):
            return
        if tops:
            self._tops[result] = tops
        if caps:
            self._caps[result] = caps

    def note_unit(self, operation: Operation) -> None:
        self._units.update(operation.results)

    def is_unit_square(self, operation: Operation, x: Value, y: Value) -> bool:
        found = source_of(x) is source_of(y) and source_of(x) in self._units
        if found:
            self._unit_squares.update(operation.results)
        return found

    def mean_of_squares(self, operation: Operation) -> Interval | None:
        """Of a mean of unit squares: one of them is 1. (Where all of x is 0 the quotient is 0 too, and whoever divides
        by its largest magnitude divides eps by it as well.)"""
        x = operation.operand("x")
        if x is None or source_of(x) not in self._unit_squares or not operation.results:
            return None
        count = operation.results[0].count
        return (count / x.count, 1.0) if x.count > 0 and count > 0 else None

    def is_below(self, value: Value, top: Value) -> bool:
        """Whether no element of `value` is above `top`, its own maximum."""
        return source_of(value) in self._tops.get(top, self._tops.get(source_of(top), frozenset()))

    def is_within(self, value: Value, cap: Value) -> bool:
        """Whether no magnitude of `value` is above `cap`, its own largest."""
        return source_of(value) in self._caps.get(cap, self._caps.get(source_of(cap), frozenset()))


def _of_constant(value: Value) -> Interval:
    numbers = value.numbers() if value.literal is not None else None
    if not numbers or any(number != number for number in numbers):
        return ANYTHING
    return min(numbers), max(numbers)


def _checked(interval: Interval) -> Interval:
    low, high = interval
    return (-inf if low != low else low, inf if high != high else high)


def _corners(one: Interval, other: Interval) -> Interval:
    found = [0.0 if 0.0 in (a, b) else a * b for a in one for b in other]
    return min(found), max(found)


def _pair(ranges: Ranges, operation: Operation) -> tuple[Value, Value] | None:
    x, y = operation.operand("x"), operation.operand("y")
    return None if x is None or y is None else (x, y)


def _add(ranges: Ranges, operation: Operation) -> Interval:
    if (pair := _pair(ranges, operation)) is None:
        return ANYTHING
    (low, high), (other_low, other_high) = map(ranges.bounds, pair)
    return low + other_low, high + other_high


def _sub(ranges: Ranges, operation: Operation) -> Interval:
    if (pair := _pair(ranges, operation)) is None:
        return ANYTHING
    (low, high), (other_low, other_high) = map(ranges.bounds, pair)
    found = low - other_high, high - other_low
    return (found[0], min(found[1], 0.0)) if ranges.is_below(*pair) else found


def _mul(ranges: Ranges, operation: Operation) -> Interval:
    if (pair := _pair(ranges, operation)) is None:
        return ANYTHING
    x, y = pair
    for value, other in ((x, y), (y, x)):
        inverse = other.producer
        if inverse is not None and inverse.type == "inverse":
            divisor = inverse.operand("x")
            if divisor is not None and ranges.is_within(value, divisor):
                ranges.note_unit(operation)
                return SIGNED
    if ranges.is_unit_square(operation, x, y):
        return SHARE
    found = _corners(ranges.bounds(x), ranges.bounds(y))
    return (max(0.0, found[0]), found[1]) if source_of(x) is source_of(y) else found


def _div(ranges: Ranges, operation: Operation) -> Interval:
    if (pair := _pair(ranges, operation)) is None:
        return ANYTHING
    x, y = pair
    if ranges.is_within(x, y):
        ranges.note_unit(operation)
        return SIGNED
    low, high = ranges.bounds(y)
    if low <= 0 <= high:
        return ANYTHING
    return _corners(ranges.bounds(x), (1 / high, 1 / low))


def _exp(ranges: Ranges, operation: Operation) -> Interval:
    x = operation.operand("x")
    low, high = ANYTHING if x is None else ranges.bounds(x)
    return _power(low), _power(high)


def _power(number: float) -> float:
    return inf if number > 700 else exp(number)


def _one(function: Callable[[float, float], Interval]) -> Callable[[Ranges, Operation], Interval]:
    def of(ranges: Ranges, operation: Operation) -> Interval:
        x = operation.operand("x")
        return ANYTHING if x is None else function(*ranges.bounds(x))

    return of


def _abs(low: float, high: float) -> Interval:
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _square_root(low: float, high: float) -> Interval:
    return (sqrt(low) if low > 0 else 0.0), (inf if high == inf else sqrt(max(high, 0.0)))


def _clip(ranges: Ranges, operation: Operation) -> Interval:
    x = operation.operand("x")
    low, high = ANYTHING if x is None else ranges.bounds(x)
    return max(low, operation.number("alpha", -inf)), min(high, operation.number("beta", inf))


def _extreme(choose: Callable[[float, float], float]) -> Callable[[Ranges, Operation], Interval]:
    def of(ranges: Ranges, operation: Operation) -> Interval:
        if (pair := _pair(ranges, operation)) is None:
            return ANYTHING
        (low, high), (other_low, other_high) = map(ranges.bounds, pair)
        return choose(low, other_low), choose(high, other_high)

    return of


def _sum(ranges: Ranges, operation: Operation) -> Interval:
    """As many of x as the result has fewer elements."""
    x = operation.operand("x")
    if x is None or not operation.results or operation.results[0].count <= 0 or x.count <= 0:
        return ANYTHING
    times = min(x.count // operation.results[0].count, 1 << 60)
    low, high = ranges.bounds(x)
    return low * times, high * times


RULES: dict[str, Callable[[Ranges, Operation], Interval]] = {
    "abs": _one(_abs),
    "add": _add,
    "clip": _clip,
    "exp": _exp,
    "gelu": _one(lambda low, high: (-0.2, max(high, 0.0))),
    "maximum": _extreme(max),
    "minimum": _extreme(min),
    "mul": _mul,
    "real_div": _div,
    "reduce_sum": _sum,
    "relu": _one(lambda low, high: (max(low, 0.0), max(high, 0.0))),
    "silu": _one(lambda low, high: (-0.3, max(high, 0.0))),
    "sqrt": _one(_square_root),
    "sub": _sub,
}
