"""A saved ML Program, found and parsed. A leaf without torch: whoever only looks at a program starts at once."""

import os
from pathlib import Path
from typing import Any

from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.json_reader import load_json
from coreai_recipes.manifest.files import check_relative, read_regular

MOST_MODEL_BYTES = 512 << 20
MOST_MANIFEST_BYTES = 1 << 20
SPECIFICATIONS = {"CoreML5": 6, "CoreML6": 7, "CoreML7": 8, "CoreML8": 9, "CoreML9": 10}  # the oldest that has an opset
SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}


def find_model_file(path: Path) -> Path:
    """The protobuf file that the package's Manifest.json names."""
    if not path.exists():
        raise EvaluationError(f"{path}: there is no such package")
    if path.suffix == ".aimodel":
        raise EvaluationError(
            f"{path}: is in Core AI's format, whose programs Apple's runtime alone runs: `recipe verify` takes the "
            "bundle that it is in"
        )
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise EvaluationError(f"{path}: is not an .mlpackage: it has no Manifest.json")
    try:
        content = load_json(read_file(manifest, MOST_MANIFEST_BYTES, path))
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError):
        raise EvaluationError(f"{manifest}: does not name the package's model") from None
    try:
        model_file = path / "Data" / check_relative(relative if isinstance(relative, str) else "")
    except ValueError as error:
        raise EvaluationError(f"{path}: its Manifest.json names {relative!r:.80}, which {error}") from None
    if not os.path.lexists(model_file):
        raise EvaluationError(f"{path}: its Manifest.json names {relative}, which is not there")
    return model_file


def read_file(path: Path, most: int, package: Path) -> bytes:
    """A file of a package; the faults are this room's."""
    try:
        return read_regular(path, most, within=package)
    except BundleError as error:
        raise EvaluationError(*error.problems) from None
    except OSError:
        raise EvaluationError(f"{path}: is not there") from None


def parse_program(content: bytes, file: Path, package: Path, only: str) -> Any:
    """The Core ML model message in `content`, which was read from `file` of `package`.

    Raises EvaluationError for what is no ML Program with functions; `only` ends the sentence on another kind of model.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

    from coreai_recipes.protobuf import Model_pb2

    model = Model_pb2.Model()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise EvaluationError(f"{file}: is truncated, or not a Core ML model") from None
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise EvaluationError(f"{package}: is not an ML Program but {kind or 'empty'}: {only}")
    if not model.mlProgram.functions:
        raise EvaluationError(f"{package}: is an ML Program without functions")
    said, opsets = model.specificationVersion, {each.opset for each in model.mlProgram.functions.values()}
    opset = max(opsets & SPECIFICATIONS.keys(), key=SPECIFICATIONS.__getitem__, default=None)
    if opset is not None and 0 < said < SPECIFICATIONS[opset]:
        needed = SPECIFICATIONS[opset]
        raise EvaluationError(
            f"{package}: is of specification {said}{_system(said)}, and its functions are of {opset}, which needs "
            f"{needed}{_system(needed)}: Core ML does not load it"
        )
    return model


def _system(specification: int) -> str:
    """The oldest system with it."""
    return f" ({SYSTEMS[specification]})" if specification in SYSTEMS else ""
