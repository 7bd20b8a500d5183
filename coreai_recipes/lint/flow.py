"""How values of a function hang together: what is a view of what, what stands in a layer, islands of float32."""

from collections.abc import Iterator
from functools import cached_property

from coreai_recipes.lint.program import Function, Operation, Value

# The same elements, under another shape or type; `tile` and `expand_dims` repeat or name them anew.
VIEWS = frozenset({"cast", "expand_dims", "identity", "reshape", "reshape_like", "squeeze", "flatten2d", "transpose"})
# What takes, places or repeats elements, and makes none.
MOVES = VIEWS | {
    "concat", "gather", "gather_along_axis", "gather_nd", "pad", "read_state", "reverse", "slice_by_index",
    "slice_by_size", "slice_update", "split", "stack", "tile", "coreml_update_state",
}  # fmt: skip
PRODUCTS = frozenset({"conv", "conv_transpose", "linear", "matmul", "einsum"})
ELEMENTWISE = frozenset({
    "add", "clip", "gelu", "mul", "real_div", "relu", "sigmoid", "sigmoid_hard", "silu", "softplus", "sub", "tanh",
})  # fmt: skip
PLACES = frozenset({
    "begin", "end", "stride", "size", "indices", "shape", "begin_mask", "end_mask", "reps", "axes", "axis",
})  # fmt: skip
STATE_WRITES = {"write_state": ("input", "data"), "coreml_update_state": ("state", "value")}


def is_weighted(operation: Operation) -> bool:
    """Whether it is a product with a weight."""
    if operation.type not in PRODUCTS:
        return False
    weight = operation.operand("weight")
    if weight is not None:
        return True
    return any(value.constant and len(value.shape) > 1 for value in operation.values())


def source_of(value: Value) -> Value:
    """What a value is a view of."""
    while value.producer is not None and value.producer.type in VIEWS:
        under = value.producer.operand("x", "values")
        if under is None:
            break
        value = under
    return value


class Flow:
    """A function's dataflow, worked out where a rule asks for it."""

    def __init__(self, function: Function) -> None:
        self.function = function

    @cached_property
    def has_products(self) -> bool:
        return any(is_weighted(operation) for operation in self.function.operations)

    @cached_property
    def front(self) -> frozenset[Operation]:
        """What needs no more than integers that a call is given and rows of tables: made once, before the layers."""
        made = {value for value in self.function.inputs if not value.dtype.startswith("float")}
        found: set[Operation] = set()
        for operation in self.function.operations:
            if not is_weighted(operation) and all(value.constant or value in made for value in operation.values()):
                found.add(operation)
                made.update(operation.results)
        return frozenset(found)

    def is_in_layer(self, operation: Operation) -> bool:
        """Not in front. A program without products has no layers to stand before, and is one itself."""
        return not self.has_products or operation not in self.front

    @cached_property
    def of_products(self) -> frozenset[Value]:
        """What convolutions give, and what elementwise operations make of nothing else: it has the channels of the
        one, and lies as it does."""
        found: set[Value] = set()
        for operation in self.function.operations:
            computed = [value for value in operation.values() if not value.constant]
            is_product = operation.type in ("conv", "linear")
            if is_product or (operation.type in ELEMENTWISE and computed and found.issuperset(computed)):
                found.update(operation.results)
        return frozenset(found)

    @cached_property
    def islands(self) -> frozenset[Value]:
        """Float32 results that come of float16 and become float16 again."""
        operations = self.function.operations
        behind: set[Value] = set()
        for operation in operations:
            if any(
                not value.constant and (value.dtype == "float16" or (value in behind and value.dtype == "float32"))
                for value in operation.values()
            ):
                behind.update(result for result in operation.results if result.dtype == "float32")
        before: set[Value] = set()
        for operation in reversed(operations):
            if any(
                result.dtype == "float16" or (result in before and result.dtype == "float32")
                for result in operation.results
            ):
                before.update(value for value in operation.values() if value.dtype == "float32" and not value.constant)
        return frozenset(behind & before)

    @cached_property
    def lows(self) -> "Lows":
        return Lows(self.function)

    @cached_property
    def states(self) -> dict[Value, Value]:
        """Values that are a state or a part of one as it was read, by the state."""
        found: dict[Value, Value] = {state: state for state in self.function.states}
        for operation in self.function.operations:
            if operation.type in ("read_state", "coreml_update_state", "slice_update") or operation.type in VIEWS:
                under = operation.operand("input", "state", "x")
                if under in found:
                    found.update(dict.fromkeys(operation.results, found[under]))
        return found

    @cached_property
    def writes(self) -> list[tuple[Operation, Value, Value]]:
        """Each write of a state: the operation, the state and the value written."""
        found = []
        for operation in self.function.operations:
            if operation.type in STATE_WRITES:
                keys = STATE_WRITES[operation.type]
                state, value = operation.operand(keys[0]), operation.operand(keys[1])
                if state is not None and value is not None:
                    found.append((operation, self.states.get(state, state), value))
        return found

    def ancestors(self, value: Value, within: frozenset[str], most: int = 64) -> Iterator[Operation]:
        """The operations of these types that a value comes through, nearest first, at most so many."""
        waiting, seen = [value], 0
        while waiting and seen < most:
            producer = waiting.pop(0).producer
            if producer is None or producer.type not in within:
                continue
            seen += 1
            yield producer
            waiting += [under for under in producer.values() if not under.constant]

    @cached_property
    def exempt(self) -> frozenset[Value]:
        """Integers that only say where: bounds of a slice, indices; and what nobody reads."""
        users = self.function.users
        found: set[Value] = set()
        outputs = set(self.function.outputs)
        for operation in reversed(self.function.operations):
            for result in operation.results:
                readers = users.get(result, [])
                if result not in outputs and all(self._only_places(result, reader, found) for reader in readers):
                    found.add(result)
        return frozenset(found)

    @staticmethod
    def _only_places(value: Value, reader: Operation, found: set[Value]) -> bool:
        if reader.results and all(result in found for result in reader.results):
            return True
        return all(key in PLACES for key, bound in reader.operands.items() if value in bound)


class Lows:
    """What -inf, or the least number of a float type, was put into, as masks do.

    Attributes:
        brought: the operations that take such a constant, and the constant.
        composed: additions of two that have one: their sum is -inf, or NaN where one is subtracted.
    """

    LEAST = -65_000.0
    BRINGERS = frozenset({"add", "concat", "fill", "fill_like", "minimum", "mul", "pad", "select", "sub"})

    def __init__(self, function: Function) -> None:
        self.brought: dict[Operation, float] = {}
        self.composed: set[Operation] = set()
        self._peek = function.peek
        low: set[Value] = set()
        for operation in function.operations:
            if operation.results and operation.results[0].constant:
                continue
            values = [value for value in operation.values() if value.dtype.startswith("float")]
            held = [value for value in values if value in low]
            if operation.type in self.BRINGERS:
                lowest = min((least for value in values if (least := self._least(value)) is not None), default=0.0)
                if lowest < self.LEAST:
                    self.brought[operation] = lowest
                    held.append(next(value for value in values if self._least(value) == lowest))
            if not held:
                continue
            if operation.type in ("add", "sub") and len(held) > 1:
                self.composed.add(operation)
            if operation.type in MOVES or operation.type in self.BRINGERS:
                low.update(operation.results)

    def _least(self, value: Value) -> float | None:
        """The least number of a constant, of one in weight.bin among the first; or of what it is a view of."""
        while value.constant and value.literal is None and value.blob is None and value.producer is not None:
            under = value.producer.operand("x", "value")
            if under is None or not under.constant:
                return None
            value = under
        if not value.constant:
            return None
        numbers = value.numbers() if value.literal is not None else self._peek(value)
        return min(numbers) if numbers else None
