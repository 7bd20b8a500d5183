"""Tokenizers as a GGUF file's metadata has them."""

from pathlib import Path
from typing import Any

from gguf_files import TINY_TOKENIZER

from coreai_recipes.checkpoint.gguf.metadata import Metadata

TEXT = """It's 12345 o'clock; WE'LL see 3.14e-10 things, e\u0301mile\u0301 and \u00e9mil\u00e9!
def function(argument):\n    return argument  ** 2\n\n\n\t# done...\r\n  hello   world
\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u00bd \u00b2 \u0663\u0664 \U0001f917\U0001f917 na\u00efve caf\u00e9
CamelCaseWords <<a|b>> $x^2 + 1$ """


SAMPLES = [
    TEXT,
    *TEXT.split("\n"),
    *TEXT.split(),
    "",
    " ",
    "   lead",
    "trail   ",
    "\n\n",
    "a\u2581b",
    "<|im_end|>x <s>",
]


def tiny(**changes: Any) -> Metadata:
    pairs = {**TINY_TOKENIZER, "general.architecture": "llama", "llama.context_length": 256}
    pairs |= {key if "." in key else f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return Metadata(Path("model.gguf"), {key: value for key, value in pairs.items() if value is not None})
