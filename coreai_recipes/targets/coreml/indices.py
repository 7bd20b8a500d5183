"""Indices of gathers in 16 bits, where these reach all rows: 32-bit ones keep a gather off the engine (gather-i32)."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.primitives.embedding import INDEX_DTYPES, index_dtype
from coreai_recipes.protobuf import MIL_pb2
from coreai_recipes.targets.coreml.mil import immediate_integers, inputs_of, set_type, shape_of

GATHERS = frozenset({"gather", "gather_along_axis"})
DTYPES = {"int16": MIL_pb2.INT16, "uint16": MIL_pb2.UINT16, "int32": MIL_pb2.INT32}
OF_TOPK = "uint16"  # the one dtype of 16 bits that topk gives its places in
MOVES = frozenset({"reshape", "squeeze", "expand_dims", "transpose"})  # what gives the dtype that it is given


def narrow_indices(function: Any, rows: Mapping[str, int]) -> None:
    """Give the indices of each gather in `function`, in place, the dtype that its rows ask for.

        before: topk_1 = topk(scores) int32, gather_0 = gather(experts, topk_1), equal_0 = equal(numbers, topk_1)
        after:  topk_1 = topk(scores) uint16, gather_0 = gather(experts, topk_1), to_int32 = cast(topk_1), equal_0 = ...

    `rows` has the real rows of what was traced with fewer. coremltools' own pass knows only the traced ones, and would
    read wrong rows; and it leaves 32 bits to all tables beyond 32,767 rows, where unsigned ones reach 65,536.
    """
    block = function.block_specializations[function.opset]
    narrowing = _Narrowing(function, frozenset(block.outputs), rows)
    ordered = [made for operation in block.operations for made in narrowing.of(operation)]
    ordered = [type(operation).FromString(operation.SerializeToString()) for operation in ordered]
    del block.operations[:]
    block.operations.extend(ordered)


class _Narrowing:
    """What is known of a function's values on the way through its operations."""

    def __init__(self, function: Any, outputs: frozenset[str], rows: Mapping[str, int]) -> None:
        self.outputs, self.rows = outputs, rows
        self.shapes = {port.name: shape_of(port.type.tensorType) for port in function.inputs}
        self.dtypes = {port.name: port.type.tensorType.dataType for port in function.inputs}
        self.axes: dict[str, int] = {}
        self.casts: set[str] = set()
        self.narrowed: set[str] = set()  # values that were of 32 bits before

    def of(self, operation: Any) -> Iterator[Any]:
        """The operation as it shall be, behind the casts that it needs first."""
        if operation.type == "const" and (value := immediate_integers(operation)) is not None and value.size == 1:
            self.axes[operation.outputs[0].name] = int(value.item())
        given = {key: found.arguments[0].name for key, found in inputs_of(operation)}
        if operation.type in GATHERS:
            yield from self._gather(operation, given)
        if operation.type == "topk":
            yield from self._topk(operation, given)
        yield from self._use(operation)
        for output in operation.outputs:
            self.shapes[output.name] = shape_of(output.type.tensorType)
            self.dtypes[output.name] = output.type.tensorType.dataType
        yield operation

    def _gather(self, operation: Any, given: Mapping[str, str]) -> Iterator[Any]:
        source, indices = given["x"], given["indices"]
        count = self.rows.get(source) or self.shapes[source][self.axes[given["axis"]]]
        dtype = None if count is None or self.dtypes.get(indices) != MIL_pb2.INT32 else index_dtype(count)
        if dtype is not None:
            yield from self._cast(operation.inputs["indices"].arguments[0], dtype)

    def _topk(self, operation: Any, given: Mapping[str, str]) -> Iterator[Any]:
        """Places among as many values as 16 bits reach."""
        count = self.shapes[given["x"]][self.axes[given["axis"]]]
        places = operation.outputs[-1]
        is_wide = len(operation.outputs) == 2 and places.type.tensorType.dataType == MIL_pb2.INT32
        if is_wide and count is not None and count <= INDEX_DTYPES[OF_TOPK] and places.name not in self.outputs:
            word = f"{places.name}_dtype"
            yield _word(word, OF_TOPK)
            operation.inputs.pop("output_indices_dtype", None)
            operation.inputs["output_indices_dtype"].arguments.add(name=word)
            self._narrow(places)

    def _use(self, operation: Any) -> Iterator[Any]:
        """Where a narrowed value goes: on as it is, or as 32 bits into what takes no fewer."""
        for key, found in inputs_of(operation):
            for argument in found.arguments:
                if argument.name not in self.narrowed or operation.type == "cast":
                    continue
                if operation.type in MOVES and operation.outputs[0].name not in self.outputs:
                    self._narrow(operation.outputs[0])
                elif (operation.type, key) not in {(gather, "indices") for gather in GATHERS}:
                    yield from self._cast(argument, "int32")

    def _narrow(self, output: Any) -> None:
        output.type.tensorType.dataType = DTYPES[OF_TOPK]
        self.narrowed.add(output.name)

    def _cast(self, argument: Any, dtype: str) -> Iterator[Any]:
        """The cast of integers to `dtype`, once, behind the constant that says so; `argument` becomes what it gives."""
        source, name = argument.name, f"{argument.name}_to_{dtype}"
        argument.name = name
        if name in self.casts:
            return
        self.casts.add(name)
        cast = MIL_pb2.Operation(type="cast")
        cast.inputs["x"].arguments.add(name=source)
        cast.inputs["dtype"].arguments.add(name=f"{name}_dtype")
        set_type(
            cast.outputs.add(name=name).type.tensorType, DTYPES[dtype], [size or 0 for size in self.shapes[source]]
        )
        _label(cast)
        yield _word(f"{name}_dtype", dtype)
        yield cast


def _word(name: str, text: str) -> Any:
    """A constant that is a word."""
    word = MIL_pb2.Operation(type="const")
    word.outputs.add(name=name).type.tensorType.dataType = MIL_pb2.STRING
    word.attributes["val"].type.tensorType.dataType = MIL_pb2.STRING
    word.attributes["val"].immediateValue.tensor.strings.values.append(text)
    _label(word)
    return word


def _label(operation: Any) -> None:
    label = operation.attributes["name"]
    label.type.tensorType.dataType = MIL_pb2.STRING
    label.immediateValue.tensor.strings.values.append(operation.outputs[0].name)
