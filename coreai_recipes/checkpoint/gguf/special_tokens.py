"""Which tokens of a GGUF file are found whole in a text, and which end an answer, whatever their types say."""

from coreai_recipes.checkpoint.gguf.architecture import load_table
from coreai_recipes.checkpoint.gguf.metadata import Metadata

# tokenizer.ggml.token_type, gguf.constants.TokenType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_vocabulary(metadata: Metadata) -> tuple[list[str], list[int]]:
    """The tokens and the kind of each: as the file types them, but that a special token is one whatever its type.

    A file without types has ordinary tokens only, before that rule.
    """
    tokens = metadata.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise metadata.refuse("tokenizer.ggml.tokens", "is missing: the file has no tokenizer")
    if len(set(tokens)) != len(tokens):
        raise metadata.refuse("tokenizer.ggml.tokens", "has a duplicate token, which tokenizer.json cannot express")
    kinds = metadata.integers("tokenizer.ggml.token_type")
    if kinds is not None and len(kinds) != len(tokens):
        raise metadata.refuse("tokenizer.ggml.token_type", f"has {len(kinds)} kinds for {len(tokens)} tokens")
    found = list(kinds or [NORMAL] * len(tokens))
    for index in _special_ids(metadata, tokens):
        if found[index] in (NORMAL, UNUSED) and not _is_text(metadata, tokens[index]):
            found[index] = CONTROL
    return tokens, found


def end_token_ids(metadata: Metadata) -> list[int]:
    """The ids that end an answer: those that the file names, then the well-known end tokens that it has."""
    tokens, kinds = read_vocabulary(metadata)
    table = load_table("tokenizers")
    ids = {text: index for index, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != NORMAL}
    ends = [text for text in table["end_tokens"] if text in ids]
    for row in table["no_end_tokens"]:
        if all(text in ids for text in row["beside"]):
            ends = [text for text in ends if text != row["token"]]
    named = [token_id(metadata, key, len(tokens)) for key in END_KEYS]
    return list(dict.fromkeys(index for index in (*named, *(ids[text] for text in ends)) if index is not None))


def token_id(metadata: Metadata, key: str, count: int) -> int | None:
    index = metadata.integer(f"tokenizer.ggml.{key}")
    if index is None or index < count:
        return index
    if key in ("padding_token_id", "unknown_token_id"):
        return (
            None  # llama.cpp too takes its default, none, for an id out of range (src/llama-vocab.cpp, "bad special")
        )
    raise metadata.refuse(f"tokenizer.ggml.{key}", f"is {index}, but there are {count} tokens")


def _special_ids(metadata: Metadata, tokens: list[str]) -> list[int]:
    """The ids that a `*_token_id` key names, and those of tokens that look like control tokens."""
    named = [
        index
        for key in metadata.keys_under("tokenizer.ggml")
        if key.endswith("_token_id") and type(index := metadata.values[f"tokenizer.ggml.{key}"]) is int
    ]
    looks = set(load_table("tokenizers")["end_tokens"]) | set(load_table("tokenizers")["control_tokens"])
    alike = [index for index, token in enumerate(tokens) if token in looks]
    return [index for index in (*named, *alike) if 0 <= index < len(tokens)]


def _is_text(metadata: Metadata, token: str) -> bool:
    """Whether ordinary text becomes this token: a single character, or what a merge makes. (Some converters name
    token 0 as padding, and it is "!".)"""
    if len(token) == 1:
        return True
    return any(merge.replace(" ", "", 1) == token for merge in metadata.strings("tokenizer.ggml.merges") or ())
