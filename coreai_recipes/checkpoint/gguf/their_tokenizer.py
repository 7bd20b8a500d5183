"""transformers' own reading of a GGUF's tokenizer, which ours is held against, and what it leaves out (5.23)."""

import unicodedata
from typing import Any

from coreai_recipes.checkpoint.auto_tokenizer import NotLoaded, load_tokenizer
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.tokenizer import pre_tokenizer_row


def load_their_tokenizer(metadata: Metadata) -> "Any | NotLoaded":
    """AutoTokenizer's tokenizer of the file, or why there is none.

    Two things that a model's own tokenizer.json has and llama.cpp does, but this reading does not, are put right:
    words that are tokens are taken before merges, and the file's silence about a first token is read as llama.cpp's.
    """
    if metadata.text("tokenizer.ggml.pre") == "default":
        return NotLoaded("tokenizer.ggml.pre is default, which is llama.cpp's alone")
    found = load_tokenizer(metadata.path.parent, gguf_file=metadata.path.name)
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
    cuts digits apart."""
    row = _row(metadata)
    if row.get("digits") and any(character.isnumeric() for character in text):
        return False
    return row.get("normalizer") != "NFC" or unicodedata.is_normalized("NFC", text)


def _row(metadata: Metadata) -> dict[str, Any]:
    return pre_tokenizer_row(metadata) if metadata.text("tokenizer.ggml.model") == "gpt2" else {}
