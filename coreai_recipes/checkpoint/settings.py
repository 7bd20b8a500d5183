"""What a checkpoint's folder holds besides weights and tokenizer: JSON settings, the ids that end an answer."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coreai_recipes.errors import CheckpointError
from coreai_recipes.json_reader import load_json

MAX_JSON_BYTES = 64 << 20
# A value takes up to some 250 bytes once it is parsed, however short it is in the file.
MOST_VALUES = 3_000_000
# The largest released config.json, with lists of modules that are not quantised, is some 100 KB.
MAX_SETTINGS_BYTES, MOST_SETTINGS, MOST_FIELDS = 4 << 20, 200_000, 4096


# JSON has no infinity. transformers 5 writes {"__float__": "Infinity"}, its older releases the bare word.
FLOAT = "__float__"


def read_json_object(
    path: Path, place: str, most_bytes: int = MAX_JSON_BYTES, most_values: int = MOST_VALUES, unique: bool = False
) -> dict[str, Any]:
    """A JSON object, bounded in bytes and in values before it is parsed; with `unique`, without a key twice.

    Infinity and NaN are read as the object that transformers writes for them, as in {"__float__": "Infinity"}.
    Raises CheckpointError for anything else.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(min(os.fstat(file.fileno()).st_size, most_bytes) + 1)
        if len(raw) > most_bytes:
            raise CheckpointError(f"{place}: {path.name} is larger than {most_bytes >> 20} MiB")
        # Each value but the first follows a comma or opens a list or an object. Those in texts are counted too.
        if sum(map(raw.count, (b",", b"[", b"{"))) > most_values:
            raise CheckpointError(f"{place}: {path.name} holds more than {most_values} values")
        content = load_json(
            raw, object_pairs_hook=_refuse_duplicates if unique else None, parse_constant=lambda word: {FLOAT: word}
        )
    except OSError as error:
        raise CheckpointError(f"{place}: {path.name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{place}: {path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{place}: {path.name} is not a JSON object")
    return content


def read_settings(path: Path, place: str) -> dict[str, Any]:
    """config.json or generation_config.json: a JSON object of a size that such a file can have."""
    content = read_json_object(path, place, MAX_SETTINGS_BYTES, MOST_SETTINGS)
    if len(content) > MOST_FIELDS:
        raise CheckpointError(
            f"{place}: {path.name} has {len(content)} fields, and no model has more than {MOST_FIELDS}"
        )
    return content


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!a:.80} occurs twice")
    return content


def check_token_ids(ids: object, place: str) -> list[int]:
    """`eos_token_id` as a list; CheckpointError when it is neither an id nor a list of ids."""
    found = ids if isinstance(ids, list) else [ids]
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in found):
        raise CheckpointError(f"{place}: eos_token_id is {ids!r:.80}, neither a token id nor a list of them")
    return list(dict.fromkeys(found))


def read_eos_token_ids(folder: Path, config: dict[str, Any], place: str) -> list[int]:
    """The ids that end an answer, from generation_config.json in `folder`, else from `config`; empty when none says.

    transformers writes its class's default into either file, also beside a table that has no such row: nobody has
    chosen it, and no answer can end with it.
    """
    path = folder / "generation_config.json"
    generation = read_settings(path, place) if path.is_file() else {}
    text_config = config.get("text_config")
    for settings in (generation, config, text_config if isinstance(text_config, dict) else {}):
        ids = settings.get("eos_token_id")
        if ids is not None and (chosen := _without_default(check_token_ids(ids, place), config)):
            return chosen
    return []


def _without_default(ids: list[int], config: Mapping[str, Any]) -> list[int]:
    """The ids without that default of the config's class which is beyond the rows of the table."""
    text = config.get("text_config")
    part = text if isinstance(text, Mapping) else config
    rows = part.get("vocab_size")
    if type(rows) is not int or max(ids, default=0) < rows:
        return ids
    from transformers import CONFIG_MAPPING

    model_type = str(part.get("model_type"))
    default = getattr(CONFIG_MAPPING[model_type], "eos_token_id", None) if model_type in CONFIG_MAPPING else None
    return [token for token in ids if token < rows or token != default]
