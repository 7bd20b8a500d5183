"""`--messages`: a conversation from a file."""

from pathlib import Path
from typing import Any

from coreai_recipes.errors import UserError
from coreai_recipes.json_reader import load_json
from coreai_recipes.terminal.streams import MAX_INPUT_BYTES


def read_messages(path: Path) -> list[dict[str, str]]:
    """A JSON list of objects with `role` and `content`. Raises UserError with every message that is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(content) > MAX_INPUT_BYTES:
        raise UserError(f"{path}: holds more than {MAX_INPUT_BYTES >> 20} MiB, too large for a conversation")
    try:
        found = load_json(content.decode())
    except ValueError as error:  # what is no UTF-8, too
        raise UserError(f"{path}: is not JSON: {error}") from None
    if not isinstance(found, list) or not found:
        raise UserError(f'{path}: must be a list of messages, as in [{{"role": "user", "content": "Hello"}}]')
    UserError.collect(f"{path}: message {n}: {why}" for n, each in enumerate(found) if (why := _problem(each)))
    return found


def _problem(message: Any) -> str | None:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        return "must be an object with role and content"
    wrong = [key for key, value in sorted(message.items()) if not isinstance(value, str)]
    return f"{' and '.join(wrong)}: no text" if wrong else None
