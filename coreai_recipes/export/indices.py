"""Indices of gathers in 16 bits, where these reach all rows: 32-bit ones keep a gather off the engine (gather-i32)."""

from collections.abc import Mapping
from typing import Any

from coreai_recipes.export.mil import immediate_integers, inputs_of, set_type, shape_of
from coreai_recipes.primitives.embedding import index_dtype
from coreai_recipes.protobuf import MIL_pb2

GATHERS = frozenset({"gather", "gather_along_axis"})
NARROW = {"int16": MIL_pb2.INT16, "uint16": MIL_pb2.UINT16}


def narrow_indices(function: Any, rows: Mapping[str, int]) -> None:
    """Cast the indices of each gather in `function`, in place, to the dtype that its rows ask for.

    `rows` has the real rows of what was traced with fewer. coremltools' own pass knows only the traced ones, and would
    read wrong rows; and it leaves 32 bits to all tables beyond 32,767 rows, where unsigned ones reach 65,536.
    """
    block = function.block_specializations[function.opset]
    shapes = {port.name: shape_of(port.type.tensorType) for port in function.inputs}
    dtypes = {port.name: port.type.tensorType.dataType for port in function.inputs}
    axes: dict[str, int] = {}
    casts: dict[tuple[str, str], str] = {}
    ordered: list[Any] = []
    for operation in block.operations:
        if operation.type == "const" and (value := immediate_integers(operation)) is not None and value.size == 1:
            axes[operation.outputs[0].name] = int(value.item())
        if operation.type in GATHERS:
            given = {key: found.arguments[0].name for key, found in inputs_of(operation)}
            source, indices = given["x"], given["indices"]
            count = rows.get(source) or shapes[source][axes[given["axis"]]]
            dtype = None if count is None or dtypes.get(indices) != MIL_pb2.INT32 else index_dtype(count)
            if dtype is not None:
                if (indices, dtype) not in casts:
                    casts[indices, dtype] = f"{indices}_to_{dtype}"
                    ordered += _cast(indices, shapes[indices], dtype, casts[indices, dtype])
                operation.inputs["indices"].arguments[0].name = casts[indices, dtype]
        for output in operation.outputs:
            shapes[output.name] = shape_of(output.type.tensorType)
            dtypes[output.name] = output.type.tensorType.dataType
        ordered.append(operation)
    ordered = [type(operation).FromString(operation.SerializeToString()) for operation in ordered]
    del block.operations[:]
    block.operations.extend(ordered)


def _cast(source: str, shape: list[int | None], dtype: str, name: str) -> list[Any]:
    """The cast of integers to `dtype`, behind the constant that says so."""
    word, cast = MIL_pb2.Operation(type="const"), MIL_pb2.Operation(type="cast")
    word.outputs.add(name=f"{name}_dtype").type.tensorType.dataType = MIL_pb2.STRING
    word.attributes["val"].type.tensorType.dataType = MIL_pb2.STRING
    word.attributes["val"].immediateValue.tensor.strings.values.append(dtype)
    cast.inputs["x"].arguments.add(name=source)
    cast.inputs["dtype"].arguments.add(name=f"{name}_dtype")
    set_type(cast.outputs.add(name=name).type.tensorType, NARROW[dtype], [size or 0 for size in shape])
    for operation in (word, cast):
        label = operation.attributes["name"]
        label.type.tensorType.dataType = MIL_pb2.STRING
        label.immediateValue.tensor.strings.values.append(operation.outputs[0].name)
    return [word, cast]
