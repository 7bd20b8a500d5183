"""A checkpoint folder's tokenizer and generation settings, copied into a bundle."""

import shutil
from pathlib import Path

from coreai_recipes.errors import CheckpointError

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
        raise CheckpointError(f"{place}: transformers has no way to make tokenizer.json from {type(tokenizer).__name__}")
    tokenizer.backend_tokenizer.save(str(target))
