"""Vocabularies in the forms before tokenizer.json: what is known of them without the packages that read them."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from coreai_recipes.tokenizer.files import FileError, read_bytes, read_object

# Any of these is enough for transformers to make a tokenizer.json from, where its packages are installed.
OLDER = (
    *("tokenizer.model", "vocab.json", "tekken.json", "tiktoken.model", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model"),
)
MERGES = "merges.txt"
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")
LENGTH_DELIMITED = 2  # the wire type of protobuf for a message and a text


def needed_package(path: Path) -> str | None:
    """The package that transformers reads the file with, if it is not here; else None."""
    if path.name == "tekken.json":
        package = "mistral-common"
    elif path.suffix == ".model":
        with path.open("rb") as file:
            package = "tiktoken" if TIKTOKEN.match(file.read(4096)) else "sentencepiece"
    else:
        return None
    return None if find_spec(package.replace("-", "_")) else package


def read_ids(path: Path) -> dict[str, int]:
    """The ids that the file gives, by text; none where a class of transformers may move them.

    Raises FileError for a file that is not what its name says.
    """
    if path.name == "vocab.json":
        found = read_object(path)
        if not all(type(index) is int for index in found.values()):
            raise FileError(f"{path.name} holds more than ids: it is not a vocabulary")
        return found
    if path.name == "vocab.txt":
        text = read_bytes(path).decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
        return {line: index for index, line in enumerate(text.removesuffix("\n").split("\n"))}
    content = read_bytes(path)
    if path.suffix != ".model":
        return {}
    try:
        ids = _ranks(content) if TIKTOKEN.match(content[:4096]) else _pieces(content)
    except ValueError:
        raise FileError(f"{path.name} is neither sentencepiece's nor tiktoken's, or it was truncated") from None
    # other classes put tokens of their own before sentencepiece's
    return ids if path.name == "tokenizer.model" else {}


def _ranks(content: bytes) -> dict[str, int]:
    """tiktoken's: a line for each token, in base64 and with its rank."""
    found = {}
    for line in content.splitlines():
        token, rank = line.split()
        found[token.decode("ascii")] = int(rank)
    return found


def _pieces(content: bytes) -> dict[str, int]:
    """sentencepiece's ModelProto, whose fields are all messages: field 1 is a piece, whose own field 1 is its text."""
    found: dict[str, int] = {}
    for field, message in _fields(content):
        if field == 1:
            text = next((value for number, value in _fields(message) if number == 1), b"")
            found[text.decode("utf-8", "replace")] = len(found)
    if not found:
        raise ValueError("no pieces")
    return found


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message up to the first that is a number, which a piece has behind its text."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 != LENGTH_DELIMITED:
            return
        length, at = _varint(message, at)
        if at + length > len(message):
            raise ValueError("cut short")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at that place, and the place behind it."""
    number = shift = 0
    while True:
        if at == len(message) or shift > 63:
            raise ValueError("cut short")
        number |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return number, at
