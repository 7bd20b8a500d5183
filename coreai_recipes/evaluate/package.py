"""Opens an .mlpackage: its manifest, its protobuf and its constants. Nothing is computed here."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from coreai_recipes.evaluate.blob import BlobFile
from coreai_recipes.evaluate.constants import BlobConstant, Constant, ImmediateConstant
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, Array, decode_elements, name_of_element_type
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.protobuf import Model_pb2

UNKNOWN = -1


class Package:
    """An ML Program as it lies on disk. `functions` are the protobuf's own, `default_function` the name of one.

    Without `checked` its weights are taken at the program's word: they may still be on their way to the disk.
    """

    def __init__(self, path: Path, checked: bool = True) -> None:
        self.path, self._checked = path, checked
        self._model_file = _find_model_file(path)
        try:
            content = self._model_file.read_bytes()
        except OSError as error:
            raise EvaluationError(f"{self._model_file}: cannot be read: {error.strerror}") from None
        model = Model_pb2.Model()
        try:
            model.ParseFromString(content)
        except DecodeError:
            raise EvaluationError(f"{self._model_file}: is cut short or not a Core ML model") from None
        kind = model.WhichOneof("Type")
        if kind != "mlProgram":
            raise EvaluationError(f"{path}: is not an ML Program but {kind or 'empty'}: only ML Programs can be run")
        self.functions: dict[str, Any] = dict(sorted(model.mlProgram.functions.items()))
        if not self.functions:
            raise EvaluationError(f"{path}: is an ML Program without functions")
        self.default_function = model.description.defaultFunctionName or next(
            (name for name in ("main", *sorted(self.functions)) if name in self.functions), ""
        )
        self._blobs: dict[str, BlobFile] = {}

    def constant(self, value: Any) -> Constant:
        """The constant that a `MIL.Value` describes; a blob is located, not read."""
        kind = value.type.WhichOneof("type")
        if kind != "tensorType":
            raise EvaluationError(f"{self.path}: holds a constant of type {kind}, which cannot be evaluated")
        element_type = name_of_element_type(value.type.tensorType.dataType)
        if element_type not in ELEMENT_TYPES:
            raise EvaluationError(f"{self.path}: holds a constant of {element_type}, which cannot be evaluated")
        shape = shape_of(value.type.tensorType)
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
            path = self._model_file.parent / name.removeprefix("@model_path/")
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise EvaluationError(f"{self.path}: its weights {name} lie outside the package")
            self._blobs[name] = BlobFile(path)
        return self._blobs[name]


def _find_model_file(path: Path) -> Path:
    if not path.exists():
        raise EvaluationError(f"{path}: there is no such package")
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise EvaluationError(f"{path}: is not an .mlpackage: it has no Manifest.json")
    try:
        content = json.loads(manifest.read_bytes())
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError):
        raise EvaluationError(f"{manifest}: does not name the package's model") from None
    model_file = path / "Data" / str(relative)
    if not model_file.is_file():
        raise EvaluationError(f"{path}: its Manifest.json names {relative}, which is not there")
    return model_file


def shape_of(tensor_type: Any) -> tuple[int, ...]:
    """The declared shape of a `MIL.TensorType`; a size that only the run decides is -1."""
    # a list, because a program has tens of thousands of types and a generator takes twice as long
    return tuple([d.constant.size if d.HasField("constant") else UNKNOWN for d in tensor_type.dimensions])


def _immediate(tensor: Any, element_type: str, shape: tuple[int, ...]) -> ImmediateConstant:
    kind = tensor.WhichOneof("value")
    if element_type == "string":
        return ImmediateConstant(element_type, shape, np.empty(0, np.uint8), tuple(tensor.strings.values))
    row, count = ELEMENT_TYPES[element_type], math.prod(shape)
    if kind is None:
        values: Array = np.zeros(count, row.stored)
    elif kind == "bytes":
        values = decode_elements(np.frombuffer(tensor.bytes.values, np.uint8), row, count)
    else:
        values = np.array(getattr(tensor, kind).values, row.stored)
    if values.size != count:
        raise EvaluationError(f"a constant of shape {shape} has {values.size} values: the program is damaged")
    return ImmediateConstant(element_type, shape, values.copy())
