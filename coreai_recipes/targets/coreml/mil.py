"""Small words for reading and writing ML Program protobufs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.protobuf import MIL_pb2

WEIGHT_FILE = "@model_path/weights/weight.bin"
DTYPES: dict[str, int] = {
    "float16": MIL_pb2.FLOAT16,
    "float32": MIL_pb2.FLOAT32,
    "int32": MIL_pb2.INT32,
    "int8": MIL_pb2.INT8,
    "int4": MIL_pb2.INT4,
    **{f"uint{bits}": getattr(MIL_pb2, f"UINT{bits}") for bits in (1, 2, 3, 4, 6, 8)},
}


def inputs_of(operation: Any) -> Iterator[tuple[str, Any]]:
    """An operation's inputs by name, in an order of ours: protobuf walks a map in another one in each process."""
    for key in sorted(operation.inputs):
        yield key, operation.inputs[key]


def shape_of(tensor_type: Any) -> list[int | None]:
    """The dimensions of a tensor type, None where unknown."""
    known = [d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor_type.dimensions]
    return [None if size is None else int(size) for size in known]


def set_type(tensor_type: Any, dtype: int, shape: Sequence[int]) -> None:
    """Make `tensor_type` that of a tensor of `dtype` and `shape`."""
    tensor_type.dataType = dtype
    tensor_type.rank = len(shape)
    del tensor_type.dimensions[:]
    for size in shape:
        tensor_type.dimensions.add().constant.size = size


def add_const(block: Any, name: str, dtype: int, shape: Sequence[int]) -> Any:
    """Append a const operation to `block` and give its value, to be filled in."""
    operation = add_operation(block, "const", name, dtype, shape)
    value = operation.attributes["val"]
    value.type.CopyFrom(operation.outputs[0].type)
    return value


def add_operation(block: Any, kind: str, name: str, dtype: int, shape: Sequence[int]) -> Any:
    """Append an operation with one output, `name`, to `block`, its inputs to be filled in."""
    operation = block.operations.add(type=kind)
    set_type(operation.outputs.add(name=name).type.tensorType, dtype, shape)
    label = operation.attributes["name"]
    label.type.tensorType.dataType = MIL_pb2.STRING
    label.immediateValue.tensor.strings.values.append(name)
    return operation


def immediate_integers(operation: Any) -> NDArray[Any] | None:
    """The value of a const operation that holds integers or booleans in place, else None."""
    value = operation.attributes["val"]
    if value.WhichOneof("value") != "immediateValue":
        return None
    shape = [size or 0 for size in shape_of(value.type.tensorType)]
    match value.immediateValue.tensor.WhichOneof("value"):
        case "ints":
            return np.array(value.immediateValue.tensor.ints.values, dtype=np.int64).reshape(shape)
        case "bools":
            return np.array(value.immediateValue.tensor.bools.values, dtype=bool).reshape(shape)
    return None
