"""transformers' own reading of a GGUF's tokenizer, which ours is held against, and what it leaves out (5.23)."""

import tempfile
import unicodedata
from pathlib import Path
from typing import Any

from coreai_recipes.checkpoint.auto_tokenizer import NotLoaded, load_tokenizer
from coreai_recipes.checkpoint.gguf.architecture import load_table
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.special_tokens import CONTROL, UNKNOWN, USER_DEFINED, read_vocabulary
from coreai_recipes.checkpoint.gguf.their_reader import mapped_plainly
from coreai_recipes.checkpoint.gguf.tokenizer import SPACE, pre_tokenizer_row

FILE = "model.gguf"
PREFIX = "tokenizer.ggml.add_space_prefix"


def load_their_tokenizer(metadata: Metadata) -> "Any | NotLoaded":
    """AutoTokenizer's tokenizer of the file, or why there is none.

    Two things that a model's own tokenizer.json has and llama.cpp does, but this reading does not, are put right:
    words that are tokens are taken before merges, and the file's silence about a first token is read as llama.cpp's.
    """
    if metadata.text("tokenizer.ggml.pre") == "default":
        return NotLoaded("tokenizer.ggml.pre is default, which is llama.cpp's alone")
    if _is_sentencepiece(metadata) and metadata.flag(PREFIX, True) == _is_gemma(metadata):
        return NotLoaded(f"{PREFIX} is {metadata.flag(PREFIX, True)}, which transformers does not read".lower())
    with tempfile.TemporaryDirectory() as alone:  # without the settings of another model that lie beside the file
        Path(alone, FILE).symlink_to(metadata.path.resolve())
        with mapped_plainly():
            found = load_tokenizer(alone, gguf_file=FILE)
    if isinstance(found, NotLoaded):
        return found
    row = _row(metadata)
    if row.get("ignore_merges"):
        found.backend_tokenizer.model.ignore_merges = True
    if "tokenizer.ggml.add_bos_token" not in metadata.values and row.get("add_bos"):
        found.add_bos_token = True
    return found


def is_comparable(metadata: Metadata, text: str) -> bool:
    """Whether that reading cuts `text` as the model's own tokenizer does: it neither composes characters (NFC), nor
    cuts digits apart; of Llama's it puts a space before a text once, where the model's own tokenizer.json and llama.cpp
    put one after each special token too, and before a text that begins with one."""
    if _is_sentencepiece(metadata) and not _is_gemma(metadata) and not _is_phi3(metadata):
        return not text.startswith((" ", SPACE)) and not any(token in text for token in _control_tokens(metadata))
    row = _row(metadata)
    if row.get("digits") and any(character.isnumeric() for character in text):
        return False
    return row.get("normalizer") != "NFC" or unicodedata.is_normalized("NFC", text)


def _row(metadata: Metadata) -> dict[str, Any]:
    return pre_tokenizer_row(metadata) if metadata.text("tokenizer.ggml.model") == "gpt2" else {}


def _is_sentencepiece(metadata: Metadata) -> bool:
    return metadata.text("tokenizer.ggml.model") == "llama"


def _is_gemma(metadata: Metadata) -> bool:
    return metadata.text("general.architecture") in load_table("tokenizers")["merged_by_id"]


def _is_phi3(metadata: Metadata) -> bool:
    return metadata.text("general.architecture") == "phi3"


def _control_tokens(metadata: Metadata) -> list[str]:
    tokens, kinds = read_vocabulary(metadata)
    return [token for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, UNKNOWN, USER_DEFINED)]
