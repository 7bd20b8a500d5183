"""Reading a tokenizer's files: bounded, and wrong ones are sentences."""

from pathlib import Path
from typing import Any

from coreai_recipes.json_reader import load_json, refuse_constant

LARGEST = {
    # Gemma's tokenizer.json, the largest of those that we know, has 33 MB
    ".json": 48 << 20,
    ".jinja": 1 << 20,
}
POINTER = b"version https://git-lfs.github.com/spec/"


class FileError(Exception):
    """What is wrong with a file, without its place: `tokenizer.json is not JSON: ...`."""


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises FileError for one that is too large, cannot be read or only points at its content."""
    limit = LARGEST.get(path.suffix, LARGEST[".json"])
    try:
        if not path.is_file():
            raise FileError(f"{path.name} is not a file")
        if path.stat().st_size > limit:
            raise FileError(f"{path.name} is larger than {limit >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path.name} cannot be read: {error.strerror or error}") from None
    if content.startswith(POINTER):
        raise FileError(f"{path.name} is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")
    return content


def read_text(path: Path) -> str:
    """The file's text. Raises FileError as `read_bytes` does, and for bytes that are no UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{path.name} cannot be read: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file, empty where there is no file. Raises FileError when it holds something else."""
    if not path.exists():
        return {}
    try:
        document = load_json(read_text(path), parse_constant=refuse_constant)  # a bundle's hosts read it too
    except ValueError as error:
        raise FileError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise FileError(f"{path.name} holds a {type(document).__name__}, not an object")
    return document
