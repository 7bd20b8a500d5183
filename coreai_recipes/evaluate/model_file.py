"""Where in an .mlpackage its program lies. A leaf without torch: whoever only looks at a program starts at once."""

import json
import os
from pathlib import Path

from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.manifest.files import check_relative, read_regular

MOST_MODEL_BYTES = 512 << 20
MOST_MANIFEST_BYTES = 1 << 20


def find_model_file(path: Path) -> Path:
    """The protobuf file that the package's Manifest.json names."""
    if not path.exists():
        raise EvaluationError(f"{path}: there is no such package")
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise EvaluationError(f"{path}: is not an .mlpackage: it has no Manifest.json")
    try:
        content = json.loads(read_file(manifest, MOST_MANIFEST_BYTES, path))
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
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
