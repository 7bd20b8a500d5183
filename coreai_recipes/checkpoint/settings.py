"""What a checkpoint's folder holds besides weights and tokenizer: JSON settings, the ids that end an answer."""

import json
from pathlib import Path
from typing import Any

from coreai_recipes.errors import CheckpointError

MAX_JSON_BYTES = 64 << 20


def read_json_object(path: Path, place: str) -> dict[str, Any]:
    """A JSON object of at most 64 MiB; else CheckpointError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{place}: {path.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{place}: {path.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place}: {path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{place}: {path.name} is not a JSON object")
    return content


def check_token_ids(ids: object, place: str) -> list[int]:
    """`eos_token_id` as a list; CheckpointError when it is neither an id nor a list of ids."""
    found = ids if isinstance(ids, list) else [ids]
    if not all(type(token) is int and token >= 0 for token in found):
        raise CheckpointError(f"{place}: eos_token_id is {ids!r:.80}, neither a token id nor a list of them")
    return list(dict.fromkeys(found))


def read_eos_token_ids(folder: Path, config: dict[str, Any], place: str) -> list[int]:
    """The ids that end an answer, from generation_config.json in `folder`, else from `config`; empty when none says."""
    path = folder / "generation_config.json"
    generation = read_json_object(path, place) if path.is_file() else {}
    text_config = config.get("text_config")
    for settings in (generation, config, text_config if isinstance(text_config, dict) else {}):
        ids = settings.get("eos_token_id")
        if ids is not None:
            return check_token_ids(ids, place)
    return []
