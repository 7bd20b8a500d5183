"""The text files that `recipe evaluate` reads."""

from collections.abc import Sequence
from pathlib import Path

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest.files import read_regular
from coreai_recipes.scoring.texts import MOST_BYTES
from coreai_recipes.terminal.streams import read_input

STDIN = "-"


def read_texts(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Each source and its text; `-` is standard input. Raises UserError with every one that is none."""
    found: list[tuple[str, str]] = []
    problems: list[str] = []
    for source in sources:
        try:
            text = read_input() if source == STDIN else _read_file(source)
        except UserError as error:
            problems += error.problems
            continue
        name = "standard input" if source == STDIN else source
        if not text.strip():
            problems.append(f"{name}: is empty: there is nothing to evaluate")
        elif len(text.encode()) > MOST_BYTES:
            problems.append(
                f"{name}: has {len(text.encode()):,} bytes, and {MOST_BYTES:,} are the limit: give a part of it"
            )
        found.append((name, text))
    if sources.count(STDIN) > 1:
        problems.append("standard input can only be read once: give `-` once")
    UserError.collect(problems)
    return found


def _read_file(source: str) -> str:
    try:
        return read_regular(Path(source), MOST_BYTES).decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{source}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source}: not text in UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from None
    except BundleError as error:
        raise UserError(*error.problems) from None
