"""What a checkpoint's folder holds besides weights: JSON settings, the ids that end an answer, the tokenizer."""

import json
import shutil
from pathlib import Path
from typing import Any

from coreai_recipes.errors import CheckpointError

MAX_JSON_BYTES = 64 << 20
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
# Any of these is enough for transformers to make a tokenizer.json from.
SLOW_FILES = ("tokenizer.model", "vocab.json")


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


def copy_tokenizer(source: Path, folder: Path, place: str) -> None:
    """Copy what there is of TOKENIZER_FILES; where only a slow tokenizer is there, tokenizer.json is made from it.

    Raises CheckpointError, beginning with `place`, when there is no tokenizer or it cannot be converted.
    """
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if "tokenizer.json" not in found and not any(name in found for name in SLOW_FILES):
        raise CheckpointError(f"{place}: has no tokenizer: neither tokenizer.json nor {' nor '.join(SLOW_FILES)}")
    for name in found:
        shutil.copyfile(source / name, folder / name)
    if "tokenizer.json" not in found:
        convert_slow_tokenizer(source, folder / "tokenizer.json", place)


def convert_slow_tokenizer(source: Path, target: Path, place: str) -> None:
    """Write tokenizer.json with transformers' own converter."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # its converters raise whatever sentencepiece, tokenizers or json raise
        raise CheckpointError(f"{place}: its tokenizer cannot be converted to tokenizer.json: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{place}: transformers cannot make tokenizer.json from a {type(tokenizer).__name__}")
    tokenizer.backend_tokenizer.save(str(target))
