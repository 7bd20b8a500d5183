"""Fragments -> functions of one ML Program: the pieces repeated, their names bound, their weights made constants.

For a layer of kind `full`, its place in the states being 3:

    before: layer(x, mask, slot, weight_attention_q_weight) -> y              once, converted
    after:  w = const(blob at 4096); hidden_4 = layer_3_...(hidden_3, mask_full, w)   for each layer

What depends on `slot` alone (the begin and end of the layer's rows) is worked out here and becomes constants, so that
Core ML's compiler sees static slices; without that, each slice has unknown dimensions. What two layers work out alike
(where the call's rows begin, the state as the layer before left it) is worked out once. Both are what coremltools' own
passes do to a model that is converted whole, and a test holds the two to the same operations.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.export.mil import (
    DTYPES,
    OPSET,
    WEIGHT_FILE,
    add_const,
    add_operation,
    immediate_integers,
    inputs_of,
    set_type,
    shape_of,
)
from coreai_recipes.protobuf import MIL_pb2
from coreai_recipes.storage.layout import WeightLayout

Values = dict[str, Any]
CUTS = ("slice_by_index", "reshape")
WHOLE_NUMBERS = (MIL_pb2.INT32, MIL_pb2.UINT16, MIL_pb2.INT16, MIL_pb2.BOOL)


class FunctionLinker:
    """One function of the program, written into the message `function` as fragments are appended in running order."""

    def __init__(self, layout: WeightLayout, function: Any) -> None:
        self.function = function
        self.function.opset = OPSET
        self.block = self.function.block_specializations[OPSET]
        self.layout = layout
        self.constants: dict[tuple[str, tuple[int, ...]], str] = {}
        self.known: dict[str, NDArray[Any]] = {}  # integer values that are known here, by name
        self.defined: set[str] = set()
        self.shapes: dict[str, list[int | None]] = {}
        self.computed: dict[tuple[Any, ...], str] = {}  # what is computed already, by operation and operands
        self.writes: Counter[str] = Counter()  # how often each state was written so far

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        set_type(self.function.inputs.add(name=name).type.tensorType, DTYPES[dtype], shape)
        self.defined.add(name)

    def add_state(self, name: str, shape: tuple[int, ...]) -> None:
        wrapped = self.function.inputs.add(name=name).type.stateType.wrappedType.tensorType
        set_type(wrapped, DTYPES["float16"], shape)
        self.shapes[name] = list(shape)
        self.defined.add(name)

    def add_output(self, name: str) -> None:
        self.require(name)
        self.block.outputs.append(name)

    def add_integer(self, name: str, value: int) -> str:
        """A value of shape (1,) that the linker knows, and that becomes a constant only where it must."""
        self.known[name] = np.array([value])
        return name

    def add_integers(self, name: str, values: NDArray[np.int32]) -> str:
        """A constant of whole numbers, which stand in the program: weight.bin holds float16 alone."""
        value = add_const(self.block, name, DTYPES["int32"], values.shape)
        value.immediateValue.tensor.ints.values.extend(values.reshape(-1).tolist())
        self.shapes[name] = list(values.shape)
        self.defined.add(name)
        return name

    def require(self, name: str) -> None:
        """Make sure that `name` is defined: a known value becomes a constant at its first use."""
        if name in self.defined:
            return
        if name not in self.known:
            raise RuntimeError(f"{name} is used and not defined")
        known = self.known[name]
        value = add_const(self.block, name, DTYPES["int32"], known.shape)
        value.immediateValue.tensor.ints.values.extend(int(v) for v in known.reshape(-1))
        self.defined.add(name)

    def add_weight(self, parameter: str, shape: tuple[int, ...]) -> str:
        """The constant that holds `parameter` in `shape`, one in the function however often it is asked for."""
        key = (parameter, shape)
        if key not in self.constants:
            flat = parameter.replace(".", "_")
            name = flat if flat not in self.shapes else f"{flat}_{'x'.join(map(str, shape))}"
            placed = self.layout.place(parameter, shape)
            operation, parts = placed.storage.operation, placed.storage.parts(shape)
            if operation is None:
                values = [add_const(self.block, name, DTYPES["float16"], shape)]
            else:
                made = add_operation(self.block, operation, name, DTYPES["float16"], shape)
                values = [made.inputs[part.operand].arguments.add().value for part in parts]
            for value, part, blob in zip(values, parts, placed.blobs, strict=True):
                set_type(value.type.tensorType, DTYPES[part.dtype], part.shape)
                value.blobFileValue.fileName = WEIGHT_FILE
                value.blobFileValue.offset = blob.offset
            self.constants[key] = name
            self.shapes[name] = list(shape)
            self.defined.add(name)
        return self.constants[key]

    def append(self, model: Any, prefix: str, names: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        """Append a converted fragment.

        `names` binds its inputs, outputs and states to names of this function, `parameters` its weight inputs to
        parameters of the decoder; every other name gets `prefix`.
        """
        function = model.mlProgram.functions["main"]
        bound = dict(names)
        for port in function.inputs:
            if port.name in parameters:
                shape = tuple(size or 0 for size in shape_of(port.type.tensorType))
                bound[port.name] = self.add_weight(parameters[port.name], shape)
        block = function.block_specializations[function.opset]
        appended = _Appended(bound, prefix, self)
        for operation in block.operations:
            appended.append(operation)


class _Appended:
    """The operations of one fragment on their way into a function."""

    def __init__(self, bound: dict[str, str], prefix: str, linker: FunctionLinker) -> None:
        self.bound, self.prefix, self.linker = bound, prefix, linker
        self.local: dict[str, NDArray[Any]] = {}  # integer constants of the fragment, by its own names
        self.others: dict[str, Any] = {}  # its other constants
        self.waiting: dict[str, Any] = {}  # constants of the fragment that nothing has used yet

    def rename(self, name: str) -> str:
        return self.bound.get(name) or self.prefix + name

    def value(self, name: str) -> NDArray[Any] | None:
        if name in self.local:
            return self.local[name]
        return self.linker.known.get(self.rename(name))

    def append(self, operation: Any) -> None:
        if operation.type == "const":
            name = operation.outputs[0].name
            integers = immediate_integers(operation)
            if integers is not None:
                self.local[name] = integers
            elif operation.attributes["val"].WhichOneof("value") == "blobFileValue":
                raise RuntimeError(f"{self.prefix}{name}: a stored constant in a fragment")
            else:
                self.others[name] = operation.attributes["val"].SerializeToString(deterministic=True)
            self.waiting[name] = operation
            return
        if self._fold(operation) or self._skip(operation) or self._reuse(operation):
            return
        if operation.type == "write_state":
            self.linker.writes[self.rename(operation.inputs["input"].arguments[0].name)] += 1
        for _, found in inputs_of(operation):
            for argument in found.arguments:
                if argument.WhichOneof("binding") == "name":
                    self._require(argument.name)
        self._copy(operation)

    def _require(self, name: str) -> None:
        """Bring the constant that an operation uses, at its first use."""
        if name in self.waiting:
            self._copy(self.waiting.pop(name))
        self.linker.require(self.rename(name))

    def _fold(self, operation: Any) -> bool:
        """Replace an integer operation on known values by its value."""
        fold = _FOLDS.get(operation.type)
        if fold is None or operation.outputs[0].type.tensorType.dataType != MIL_pb2.INT32:
            return False
        arguments = {key: [self.value(a.name) for a in found.arguments] for key, found in inputs_of(operation)}
        if any(value is None for key in ("x", "y", "values") for value in arguments.get(key, [])):
            return False
        result = np.asarray(fold({k: v if k == "values" else v[0] for k, v in arguments.items()}))
        self.linker.known[self.rename(operation.outputs[0].name)] = result
        return True

    def _reuse(self, operation: Any) -> bool:
        """Take the value of an equal operation before it: integers, booleans, what they are cast to, states not written
        since, and what is cut from these, which layers that share a cache cut alike."""
        output = operation.outputs[0] if len(operation.outputs) == 1 else None
        if output is None or output.name in self.bound:  # what is bound must have its own name
            return False
        operands = [
            (key, tuple(self._operand(argument) for argument in found.arguments)) for key, found in inputs_of(operation)
        ]
        version = 0
        if operation.type == "read_state":
            version = self.linker.writes[self.rename(operation.inputs["input"].arguments[0].name)]
        elif output.type.tensorType.dataType not in WHOLE_NUMBERS and operation.type not in (*CUTS, "cast"):
            return False
        key = (operation.type, version, *operands)
        if key in self.linker.computed:
            self.bound[output.name] = self.linker.computed[key]
            return True
        self.linker.computed.setdefault(key, self.rename(output.name))
        return False

    def _operand(self, argument: Any) -> Any:
        """What an operand is: the value of a constant or of what is given in place, else its name in the function."""
        if argument.WhichOneof("binding") == "value":
            return argument.value.SerializeToString(deterministic=True)
        if argument.name in self.others:
            return self.others[argument.name]
        value = self.value(argument.name)
        return self.rename(argument.name) if value is None else (value.shape, value.tobytes())

    def _copy(self, operation: Any) -> None:
        copy = self.linker.block.operations.add()
        copy.CopyFrom(operation)
        for output in copy.outputs:
            output.name = self.rename(output.name)
            self.linker.defined.add(output.name)
        for _, found in inputs_of(copy):
            for argument in found.arguments:
                if argument.WhichOneof("binding") == "name":
                    argument.name = self.rename(argument.name)
        if "name" in copy.attributes:
            label = copy.attributes["name"].immediateValue.tensor.strings.values
            label[0] = copy.outputs[0].name if copy.outputs else self.prefix + label[0]
        if operation.type == "slice_by_index":
            self._settle_shape(operation, copy)
        for output in copy.outputs:
            if output.type.WhichOneof("type") == "tensorType":
                self.linker.shapes[output.name] = shape_of(output.type.tensorType)

    def _skip(self, operation: Any) -> bool:
        """Take the operand of a slice that takes all of it, and of a reshape to the shape that it has already.

        The rows of a kind with one layer are its whole state, and a slice may turn out to need no reshape.
        """
        if operation.type not in CUTS:
            return False
        output, declared = operation.outputs[0], shape_of(operation.outputs[0].type.tensorType)
        is_settled = None not in declared
        if output.name in self.bound or is_settled != (operation.type == "reshape"):
            return False
        shape = declared if is_settled else self._sliced_shape(operation)
        if shape is None:
            return False
        source = self.rename(operation.inputs["x"].arguments[0].name)
        if shape != self.linker.shapes.get(source):
            return False
        self.bound[output.name] = source
        return True

    def _settle_shape(self, operation: Any, copy: Any) -> None:
        """Declare the shape of a slice whose begin and end became known."""
        declared = copy.outputs[0].type.tensorType
        shape = self._sliced_shape(operation) if None in shape_of(declared) else None
        if shape is not None:
            set_type(declared, declared.dataType, shape)

    def _sliced_shape(self, operation: Any) -> list[int] | None:
        """The shape that a slice gives, where its begin, its end and what it is taken from are known."""
        given = {key: self.value(found.arguments[0].name) for key, found in inputs_of(operation) if key != "x"}
        source = self.linker.shapes.get(self.rename(operation.inputs["x"].arguments[0].name))
        begin, end = given.get("begin"), given.get("end")
        if begin is None or end is None or source is None:
            return None
        begin_mask, end_mask = given.get("begin_mask"), given.get("end_mask")
        shape = []
        for axis, size in enumerate(source):
            first = 0 if begin_mask is not None and begin_mask[axis] else int(begin[axis])
            last = size if end_mask is not None and end_mask[axis] else int(end[axis])
            shape.append(int(last or 0) - first)
        return shape


def _slice(arguments: Values) -> NDArray[Any]:
    """One element of a vector, which is all that a slot is asked for."""
    if not arguments["squeeze_mask"][0]:
        raise RuntimeError("a slot is sliced in a way that the linker does not know")
    return np.asarray(arguments["x"][int(arguments["begin"][0])])


_FOLDS: dict[str, Callable[[Values], NDArray[Any]]] = {
    "expand_dims": lambda a: np.expand_dims(a["x"], tuple(int(axis) for axis in a["axes"])),
    "squeeze": lambda a: np.squeeze(a["x"]),
    "concat": lambda a: np.concatenate([np.atleast_1d(value) for value in a["values"]]),
    "add": lambda a: np.add(a["x"], a["y"]),
    "sub": lambda a: np.subtract(a["x"], a["y"]),
    "mul": lambda a: np.multiply(a["x"], a["y"]),
    "slice_by_index": _slice,
}
