"""Opens an .mlpackage: its manifest, its protobuf and its constants. Nothing is computed here."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from coreai_recipes.evaluate.blob import BlobFile
from coreai_recipes.evaluate.constants import BlobConstant, Constant, ImmediateConstant
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, Array, decode_elements, name_of_element_type
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.model_file import MOST_MODEL_BYTES, find_model_file, parse_program, read_file
from coreai_recipes.manifest.files import check_relative

UNKNOWN = -1
MOST_ELEMENTS = 1 << 31  # of one value
MOST_IMMEDIATE = 1 << 24

Ports = dict[str, tuple[str, tuple[int, ...]]]  # element type and shape by name


class Package:
    """An ML Program as it lies on disk. `functions` are the protobuf's own, `default_function` the name of one.

    Without `checked` its weights are taken at the program's word: they may still be on their way to the disk.
    """

    def __init__(self, path: Path, checked: bool = True) -> None:
        self.path, self._checked = path, checked
        self._model_file = find_model_file(path)
        content = read_file(self._model_file, MOST_MODEL_BYTES, path)
        model = parse_program(content, self._model_file, path, "only ML Programs can be run")
        self.functions: dict[str, Any] = dict(sorted(model.mlProgram.functions.items()))
        self.default_function = model.description.defaultFunctionName or next(
            (name for name in ("main", *sorted(self.functions)) if name in self.functions), ""
        )
        if self.default_function not in self.functions:
            raise EvaluationError(f"{path}: its default function {self.default_function!r:.80} is not there")
        self.description = model.description
        self._blobs: dict[str, BlobFile] = {}

    def signatures(self) -> dict[str, tuple[Ports, Ports, Ports]]:
        """Inputs, outputs and states of each function, as the program declares them."""
        return {name: self._signature(name) for name in sorted(self.functions)}

    def block(self, name: str) -> Any:
        """What a function does."""
        function = self.functions[name]
        if function.opset not in function.block_specializations:
            raise EvaluationError(f"{self.path}: function {name} has nothing for its opset {function.opset!r:.80}")
        return function.block_specializations[function.opset]

    def _signature(self, name: str) -> tuple[Ports, Ports, Ports]:
        inputs, states = signature_of(self.functions[name])
        block = self.block(name)
        wanted = set(block.outputs)
        results = (output for operation in block.operations for output in operation.outputs if output.name in wanted)
        outputs = {
            result.name: (name_of_element_type(result.type.tensorType.dataType), shape_of(result.type.tensorType))
            for result in results
        }
        return inputs, outputs, states

    def constant(self, value: Any) -> Constant:
        """The constant that a `MIL.Value` describes; a blob is located, not read."""
        kind = value.type.WhichOneof("type")
        if kind != "tensorType":
            raise EvaluationError(f"{self.path}: holds a constant of type {kind}, which cannot be evaluated")
        element_type = name_of_element_type(value.type.tensorType.dataType)
        if element_type not in ELEMENT_TYPES:
            raise EvaluationError(f"{self.path}: holds a constant of {element_type}, which cannot be evaluated")
        shape = shape_of(value.type.tensorType)
        if UNKNOWN in shape:
            raise EvaluationError(f"{self.path}: holds a constant of the invalid shape {shape}")
        if value.WhichOneof("value") == "blobFileValue":
            blob = self._blob(value.blobFileValue.fileName)
            constant = BlobConstant(element_type, shape, blob, value.blobFileValue.offset)
            if self._checked:
                constant.check()
            return constant
        return _immediate(value.immediateValue.tensor, element_type, shape)

    def _blob(self, name: str) -> BlobFile:
        """The weights file that the program calls `@model_path/weights/weight.bin`, opened once."""
        if name not in self._blobs:
            relative = name.removeprefix("@model_path/")
            try:
                path = self._model_file.parent / check_relative(relative)
            except ValueError:
                raise EvaluationError(f"{self.path}: its weights {name!r:.80} lie outside the package") from None
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise EvaluationError(f"{self.path}: its weights {name} lie outside the package")
            self._blobs[name] = BlobFile(path)
        return self._blobs[name]


def signature_of(function: Any) -> tuple[Ports, Ports]:
    """The inputs and the states of a function of the protobuf."""
    inputs: Ports = {}
    states: Ports = {}
    for parameter in function.inputs:
        is_state = parameter.type.WhichOneof("type") == "stateType"
        kind = (parameter.type.stateType.wrappedType if is_state else parameter.type).tensorType
        (states if is_state else inputs)[parameter.name] = name_of_element_type(kind.dataType), shape_of(kind)
    return inputs, states


def shape_of(tensor_type: Any) -> tuple[int, ...]:
    """The declared shape of a `MIL.TensorType`; a size that only the run decides is -1."""
    # a list, because a program has tens of thousands of types and a generator takes twice as long
    shape = tuple([d.constant.size if d.HasField("constant") else UNKNOWN for d in tensor_type.dimensions])
    if shape and math.prod(shape) > MOST_ELEMENTS:
        raise EvaluationError(f"a value has the shape {shape!s:.80}, which no memory holds: the program is damaged")
    return shape


def _immediate(tensor: Any, element_type: str, shape: tuple[int, ...]) -> ImmediateConstant:
    kind = tensor.WhichOneof("value")
    if element_type == "string":
        return ImmediateConstant(element_type, shape, np.empty(0, np.uint8), tuple(tensor.strings.values))
    row, count = ELEMENT_TYPES[element_type], math.prod(shape)
    if count > MOST_IMMEDIATE:
        raise EvaluationError(f"a constant of shape {shape} is not in weight.bin: the program is damaged")
    if kind is None:
        values: Array = np.zeros(count, row.stored)
    else:
        try:
            if kind == "bytes":
                values = decode_elements(np.frombuffer(tensor.bytes.values, np.uint8), row, count)
            else:
                values = np.array(getattr(tensor, kind).values, row.stored)
        except (ValueError, TypeError, OverflowError):
            raise EvaluationError(f"a constant of {element_type} has other values: the program is damaged") from None
    if values.size != count:
        raise EvaluationError(f"a constant of shape {shape} has {values.size} values: the program is damaged")
    return ImmediateConstant(element_type, shape, values.copy())
