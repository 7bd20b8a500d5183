"""Fragments -> functions of one ML Program: the pieces repeated, their names bound, their weights made constants.

For a layer of kind `full`, its place in the states being 3:

    before: layer(x, mask, slot, weight_attention_q_weight) -> y              once, converted
    after:  w = const(blob at 4096); hidden_4 = layer_3_...(hidden_3, mask_full, w)   for each layer
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.targets.coreml.mil import (
    DTYPES,
    WEIGHT_FILE,
    add_const,
    add_operation,
    inputs_of,
    set_type,
    shape_of,
)
from coreai_recipes.targets.coreml.simplifying import Known, Simplifier
from coreai_recipes.targets.coreml.version import OPSET

NO_NAME = re.compile(r"\W+")  # what no name of a value may have


class FunctionLinker:
    """One function of the program, written into the message `function` as fragments are appended in running order."""

    def __init__(self, layout: WeightLayout, function: Any) -> None:
        self.function = function
        self.function.opset = OPSET
        self.block = self.function.block_specializations[OPSET]
        self.layout = layout
        self.constants: dict[tuple[str, tuple[int, ...]], str] = {}
        self.known = Known()
        self.defined: set[str] = set()

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        set_type(self.function.inputs.add(name=name).type.tensorType, DTYPES[dtype], shape)
        self.known.shapes[name] = list(shape)
        self.defined.add(name)

    def add_state(self, name: str, shape: tuple[int, ...]) -> None:
        wrapped = self.function.inputs.add(name=name).type.stateType.wrappedType.tensorType
        set_type(wrapped, DTYPES["float16"], shape)
        self.known.shapes[name] = list(shape)
        self.defined.add(name)

    def add_output(self, name: str) -> None:
        self.require(name)
        self.block.outputs.append(name)

    def add_integer(self, name: str, value: int) -> str:
        """A value of shape (1,) that the linker knows, and that becomes a constant only where it must."""
        self.known.integers[name] = np.array([value])
        return name

    def add_integers(self, name: str, values: NDArray[np.int32]) -> str:
        """A constant of whole numbers, which stand in the program: weight.bin holds float16 alone."""
        value = add_const(self.block, name, DTYPES["int32"], values.shape)
        value.immediateValue.tensor.ints.values.extend(values.reshape(-1).tolist())
        self.known.shapes[name] = list(values.shape)
        self.defined.add(name)
        return name

    def require(self, name: str) -> None:
        """Make sure that `name` is defined: a known value becomes a constant at its first use."""
        if name in self.defined:
            return
        if name not in self.known.integers:
            raise RuntimeError(f"{name} is used and not defined")
        known = self.known.integers[name]
        value = add_const(self.block, name, DTYPES["int32"], known.shape)
        value.immediateValue.tensor.ints.values.extend(int(v) for v in known.reshape(-1))
        self.defined.add(name)

    def add_weight(self, parameter: str, shape: tuple[int, ...]) -> str:
        """The constant that holds `parameter` in `shape`, one in the function however often it is asked for."""
        key = (parameter, shape)
        if key not in self.constants:
            flat = NO_NAME.sub("_", parameter).strip("_")
            name = flat if flat not in self.known.shapes else f"{flat}_{'x'.join(map(str, shape))}"
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
            self.known.shapes[name] = list(shape)
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
        appended = _Appended(Simplifier(bound, prefix, self.known), self)
        for operation in block.operations:
            appended.append(operation)


class _Appended:
    """The operations of one fragment on their way into a function."""

    def __init__(self, simplifier: Simplifier, linker: FunctionLinker) -> None:
        self.simplifier, self.linker = simplifier, linker
        self.rename = simplifier.rename
        self.waiting: dict[str, Any] = {}  # constants of the fragment that nothing has used yet

    def append(self, operation: Any) -> None:
        if operation.type == "const":
            self.simplifier.note_constant(operation)
            self.waiting[operation.outputs[0].name] = operation
            return
        if self.simplifier.is_spared(operation):
            return
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
            label[0] = copy.outputs[0].name if copy.outputs else self.simplifier.prefix + label[0]
        if operation.type == "slice_by_index":
            self._settle_shape(operation, copy)
        for output in copy.outputs:
            if output.type.WhichOneof("type") == "tensorType":
                self.linker.known.shapes[output.name] = shape_of(output.type.tensorType)

    def _settle_shape(self, operation: Any, copy: Any) -> None:
        """Declare the shape of a slice whose begin and end became known."""
        declared = copy.outputs[0].type.tensorType
        shape = self.simplifier.sliced_shape(operation) if None in shape_of(declared) else None
        if shape is not None:
            set_type(declared, declared.dataType, shape)
