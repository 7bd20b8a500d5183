"""manifest.json and report.json, read and typed; every fault is one line that begins with its file and field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from coreai_recipes.errors import BundleError
from coreai_recipes.json_reader import load_json, refuse_constant
from coreai_recipes.manifest.files import read_regular
from coreai_recipes.manifest.schema import FORMAT, FORMATS, Manifest, Report, Sealed

MANIFEST, REPORT, RECIPE = "manifest.json", "report.json", "recipe.yaml"
PACKAGES = {"coreml": "model.mlpackage", "coreai": "model.aimodel"}  # by format; several are named after it
MAX_BYTES = 4 << 20
MAX_PROBLEMS = 20

Model = TypeVar("Model", bound=BaseModel)


def file_of_adapter(name: str) -> str:
    """Where a bundle has the values of an adapter that is not merged."""
    return f"adapters/{name}.bin"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the bundle in `folder` as its JSON has it, which `typed` takes.

    Raises FileNotFoundError when there is none, and BundleError for one of another format or with faults.
    """
    content = read_json(folder / MANIFEST, within=folder)
    _check_format(folder, content)
    if content["format"] != FORMAT:
        raise BundleError(
            f"{folder}: {MANIFEST} has format {content['format']} of an older version; this version reads "
            f"format {FORMAT}: build it again"
        )
    typed(Manifest, content, f"{folder}: {MANIFEST}")
    return dict(content)


def read_report(folder: Path) -> dict[str, Any]:
    """report.json as its JSON has it, where it is a report. Raises as `read_manifest`."""
    content = read_json(folder / REPORT, within=folder)
    typed(Report, content, f"{folder}: {REPORT}")
    return dict(content)


def read_sealed(folder: Path) -> Sealed:
    """What makes the folder a bundle, whatever else is wrong with its manifest. Raises as `read_manifest`."""
    content = read_json(folder / MANIFEST, within=folder)
    _check_format(folder, content)
    return typed(Sealed, content, f"{folder}: {MANIFEST}")


def typed(model: type[Model], content: Any, place: str) -> Model:
    """`content` as `model`. Raises BundleError with every fault, each behind `place` and its field."""
    try:
        # as JSON, whose arrays are tuples here
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        lines = list(_faults(error, place))
    if len(lines) > MAX_PROBLEMS:
        lines[MAX_PROBLEMS:] = [f"{place}: and {len(lines) - MAX_PROBLEMS} more"]
    raise BundleError(*lines)


def read_json(path: Path, within: Path | None = None) -> Any:
    """A JSON document of bounded size and depth, without names that no terminal could show."""
    return parse_json(read_regular(path, MAX_BYTES, within), path, f"{MANIFEST} or {REPORT}")


def parse_json(content: bytes, path: Path, what: str) -> Any:
    """The JSON document that the file `path`, which is `what` of a bundle, was found to hold."""
    try:
        return document_in(content)
    except ValueError as error:
        raise BundleError(f"{path.parent}: its {what} is not JSON ({path.name}: {error})") from None


def document_in(content: bytes) -> Any:
    """The JSON document of a file. Raises ValueError, which says what is wrong."""
    document = load_json(content.decode("utf-8"), parse_constant=refuse_constant)
    json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    return document


def _check_format(folder: Path, content: Any) -> None:
    if isinstance(content, dict) and "format" not in content:
        raise BundleError(f"{folder}: {MANIFEST} has no `format`: it is not a bundle's")
    found = content["format"] if isinstance(content, dict) else type(content).__name__
    if type(found) is not int or found not in FORMATS:
        raise BundleError(f"{folder}: {MANIFEST} has format {found!s:.80}, this version reads format {FORMAT}")


def _faults(error: ValidationError, place: str) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=False):
        field = ".".join(str(part) for part in detail["loc"])
        for message in detail["msg"].removeprefix("Value error, ").split("\n"):
            shown = "" if isinstance(detail["input"], dict | list) else f" ({detail['input']!r:.80})"
            said = message[:1].lower() + message[1:]
            yield f"{place}: {field[:200]}: {said}{shown}" if field else f"{place}: {said}"
