"""Whether a checkpoint's tokenizer files say what the copies in a bundle say: as values, not as bytes.

Line ends and the order of keys change with the way in which a checkpoint was fetched, and a vocabulary in an older form
may be left out beside tokenizer.json. Of generation_config.json only the end tokens go into a bundle.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coreai_recipes.checkpoint.older_vocabularies import MERGES, OLDER
from coreai_recipes.checkpoint.settings import read_eos_token_ids
from coreai_recipes.checkpoint.tokenizer_files import JSON_FILES, TOKENIZER_FILES
from coreai_recipes.errors import CheckpointError
from coreai_recipes.tokenizer.files import FileError, read_bytes, read_object
from coreai_recipes.tokenizer.tokens import TEMPLATE_FOLDER, TOKENIZER, TOKENS

GENERATION = "generation_config.json"
TEXTS = (".jinja", ".txt")


def find_other_file(given: Path, sealed: Path, config: Mapping[str, Any], place: str) -> str | None:
    """The first of the tokenizer files in `given` that says something else than its copy in the bundle `sealed`.

    `config` is the config.json that both have. Raises CheckpointError, beginning with `place`, for a file that cannot
    be read.
    """
    try:
        for name in _compared(given, sealed):
            if name == GENERATION:
                ends = [set(read_eos_token_ids(folder, dict(config), place)) for folder in (sealed, given)]
                is_other = ends[0] != ends[1]
            else:
                is_other = _content(sealed / name) != _content(given / name)
            if is_other:
                return name
    except FileError as error:
        raise CheckpointError(f"{place}: {error}") from None
    return None


def _compared(given: Path, sealed: Path) -> Iterator[str]:
    """The files that decide ids, templates and end tokens in either folder, and whose bytes differ."""
    has_tokenizer = [(folder / TOKENIZER).is_file() for folder in (given, sealed)]
    slow = [name for name in OLDER if (given / name).is_file() and (sealed / name).is_file()]
    for name in TOKENIZER_FILES:
        there = [(folder / name).is_file() for folder in (given, sealed)]
        is_vocabulary = name in OLDER or name == MERGES
        if not any(there) or (is_vocabulary and all(has_tokenizer) and not all(there)):
            continue
        if name == TOKENIZER and slow and not there[0]:  # the bundle's was made from the older form
            continue
        if not (all(there) and _are_equal(given / name, sealed / name)):
            yield name
    if (sealed / TOKENS).is_file():  # bundles without tokens.json did not take these
        folders = [folder / TEMPLATE_FOLDER for folder in (given, sealed)]
        for file in sorted({path.name for folder in folders for path in folder.glob("*.jinja")}):
            yield f"{TEMPLATE_FOLDER}/{file}"


def _are_equal(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and read_bytes(one) == read_bytes(other)


def _content(path: Path) -> str | bytes | None:
    """What a file says; a JSON file that is not there says as much as an empty object."""
    if path.name in JSON_FILES or path.name == TOKENIZER:
        return json.dumps(read_object(path), sort_keys=True)  # as text, for true is not 1
    if not path.is_file():
        return None
    content = read_bytes(path)
    return content.replace(b"\r\n", b"\n") if path.suffix in TEXTS else content
