"""tokenizer.json, tokenizer_config.json and generation_config.json, rebuilt from a GGUF file's metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from coreai_recipes.checkpoint.gguf.architecture import load_table
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.special_tokens import (
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    end_token_ids,
    read_vocabulary,
    token_id,
)
from coreai_recipes.errors import CheckpointError
from coreai_recipes.tokenizer.bundle_tokenizer import list_added
from coreai_recipes.tokenizer.template import TemplateFault, compile_template
from coreai_recipes.tokenizer.tokens import DEFAULT, Tokens

SPACE = "▁"  # how sentencepiece writes a space
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
TEMPLATE = "tokenizer.chat_template"


def write_tokenizer(metadata: Metadata, folder: Path) -> None:
    """Put the three files and tokens.json into `folder`; the chat template stands in tokenizer_config.json.

    Raises CheckpointError, by key, for a tokenizer that cannot be rebuilt to give the same ids.
    """
    tokenizer = build_tokenizer(metadata)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = _tokenizer_config(metadata)
    for name, content in (
        ("tokenizer_config.json", config),
        ("generation_config.json", _generation_config(metadata)),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    Tokens(
        special_tokens={name: config[name] for name in SPECIAL_TOKENS if name in config},
        added_tokens=list_added(tokenizer),
        end_tokens={index: tokenizer.id_to_token(index) for index in end_token_ids(metadata)},
        chat_templates=read_templates(metadata),
    ).write(folder)


def check_tokenizer(metadata: Metadata, rows: int) -> None:
    """Refuse, before anything is converted, a tokenizer that cannot be rebuilt, ids beyond the table's `rows`, and
    templates that do not compile. Raises CheckpointError."""
    problems = []
    vocabulary = build_tokenizer(metadata).get_vocab(with_added_tokens=True)
    beyond = {text: index for text, index in vocabulary.items() if index >= rows}
    if beyond:
        text, index = max(beyond.items(), key=lambda item: item[1])
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        problems.append(f"has {text!r:.60} with id {index}{more}, but the table has {rows} rows")
    CheckpointError.collect(f"{metadata.path}: tokenizer.ggml.tokens {problem}" for problem in problems)
    for name, source in read_templates(metadata).items():
        try:
            compile_template(source)
        except TemplateFault as error:
            key = TEMPLATE if name == DEFAULT else f"{TEMPLATE}.{name}"
            raise metadata.refuse(key, f"is not a template: {error}") from None


def read_templates(metadata: Metadata) -> dict[str, str]:
    """The chat templates by name; the one without a name is the default."""
    keys = [TEMPLATE, *(f"{TEMPLATE}.{name}" for name in metadata.keys_under(TEMPLATE))]
    texts = {key.removeprefix(f"{TEMPLATE}.").replace(TEMPLATE, DEFAULT): metadata.text(key) for key in keys}
    return {name: text for name, text in texts.items() if text is not None}


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """The tokenizer as transformers would load it from the model's own tokenizer.json."""
    builders: dict[str, Callable[[Metadata], Tokenizer]] = {
        "gpt2": _byte_level,
        "llama": _sentencepiece,
        "gemma4": _gemma4,
    }
    model = metadata.text("tokenizer.ggml.model")
    if model not in builders:
        raise metadata.refuse("tokenizer.ggml.model", f"is {model!r}; known are {', '.join(builders)}")
    try:
        return builders[model](metadata)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises plain Exception: a merge of a token that is not there, and the like
        raise metadata.refuse("tokenizer.ggml.tokens", f"and its merges do not fit together: {error}") from error


def _byte_level(metadata: Metadata) -> Tokenizer:
    """GPT-2's byte-level BPE, cut by the pre-tokenizer that the file names."""
    tokens, kinds = read_vocabulary(metadata)
    vocabulary = _used(tokens, kinds)
    row = pre_tokenizer_row(metadata)
    ignore_merges = row.get("ignore_merges", False)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_stated_merges(metadata), ignore_merges=ignore_merges))
    if row.get("normalizer") == "NFC":
        tokenizer.normalizer = normalizers.NFC()
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if row.get("digits") else []
    cuts += [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in row.get("split", ())]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="split" not in row))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, tokens, kinds)
    _add_post_processor(tokenizer, metadata, tokens, add_bos=row.get("add_bos", False))
    return tokenizer


def _sentencepiece(metadata: Metadata) -> Tokenizer:
    """Sentencepiece BPE with byte fallback.

    As in Llama 2's own tokenizer.json and in llama.cpp, a space is put before each text between special tokens, unless
    the file says otherwise. (Newer conversions put one at the start only; nothing in a GGUF tells them apart.)
    """
    tokens, kinds = read_vocabulary(metadata)
    # Gemma's runs of spaces are stored with real ones; the normalizer turns every space of the text into SPACE.
    tokens = [token.replace(" ", SPACE) if token.isspace() else token for token in tokens]
    vocabulary = _used(tokens, kinds)
    unknown = token_id(metadata, "unknown_token_id", len(tokens))
    if unknown is None:
        unknown = next((index for index, kind in enumerate(kinds) if kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(metadata, tokens, vocabulary),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    decoding: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.flag("tokenizer.ggml.add_space_prefix", metadata.text("tokenizer.ggml.model") == "llama"):
        steps.insert(0, normalizers.Prepend(SPACE))
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(decoding)
    _add_tokens(tokenizer, tokens, kinds)
    _add_post_processor(tokenizer, metadata, tokens, add_bos=True)
    return tokenizer


def _gemma4(metadata: Metadata) -> Tokenizer:
    """Gemma 4's, sentencepiece in all but that the file lists its merges.

    Nothing is put before a text: its template writes <bos>, and its own tokenizer adds none (transformers 5.23,
    integrations/gguf/gguf_tokenizer_mapping.py; llama.cpp puts one there whatever the file says).
    """
    return _sentencepiece(Metadata(metadata.path, {**metadata.values, "tokenizer.ggml.add_bos_token": False}))


def _merges(metadata: Metadata, tokens: list[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, best first: sentencepiece has no list of merges."""
    from transformers.tokenization_utils_base import generate_merges

    scores: dict[str, float] | None = None  # None: by id
    for key in ("tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap"):
        if metadata.values.get(key):
            raise metadata.refuse(key, "changes the text before it is split, which is not supported")
    stated = _stated_merges(metadata)
    if stated:
        return stated
    if metadata.text("tokenizer.ggml.model") == "gemma4":
        raise metadata.refuse("tokenizer.ggml.merges", "is missing, which a gemma4 tokenizer needs")
    if metadata.text("general.architecture") not in load_table("tokenizers")["merged_by_id"]:
        listed = metadata.numbers("tokenizer.ggml.scores")
        if listed is None or len(listed) != len(tokens):
            raise metadata.refuse("tokenizer.ggml.scores", "has no score for each token")
        scores = {token: listed[index] for token, index in vocabulary.items()}
    merges: list[tuple[str, str]] = generate_merges(vocabulary, scores)
    return merges


def _stated_merges(metadata: Metadata) -> list[tuple[str, str]]:
    """The merges that the file lists, none when it lists none."""
    merges = [merge.partition(" ") for merge in metadata.strings("tokenizer.ggml.merges") or ()]
    if any(not (left and right) or " " in right for left, _, right in merges):
        raise metadata.refuse("tokenizer.ggml.merges", "has a merge that is not two tokens with a space between them")
    return [(left, right) for left, _, right in merges]


def _used(tokens: list[str], kinds: list[int]) -> dict[str, int]:
    """Tokens by id without the unused ones: llama.cpp makes up names for rows that only pad the embedding table."""
    return {token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}


def pre_tokenizer_row(metadata: Metadata) -> dict[str, Any]:
    table: dict[str, dict[str, Any]] = load_table("tokenizers")["pre_tokenizers"]
    name = metadata.text("tokenizer.ggml.pre")
    for known, row in table.items():
        if name == known or name in row.get("aliases", ()):
            return row
    known_names = sorted({*table, *(alias for row in table.values() for alias in row.get("aliases", ()))})
    shown = "is missing" if name is None else f"is {name!r}, which is not supported"
    raise metadata.refuse("tokenizer.ggml.pre", f"{shown}; known are {', '.join(known_names)}")


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Make the control and user-defined tokens match whole; each is in the vocabulary already, so ids do not move."""
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, UNKNOWN)
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            # Runs of spaces come together by merges; added, they would match a SPACE written in the text itself.
            if kind == USER_DEFINED and token.strip(SPACE)
        ]
    )


def _add_post_processor(tokenizer: Tokenizer, metadata: Metadata, tokens: list[str], add_bos: bool) -> None:
    """Put the first and last token around a text where the file asks for it; `add_bos` is the default."""
    before: list[str] = []
    after: list[str] = []
    special: dict[str, int] = {}
    for key, default, side in (("bos", add_bos, before), ("eos", False, after)):
        index = token_id(metadata, f"{key}_token_id", len(tokens))
        if not metadata.flag(f"tokenizer.ggml.add_{key}_token", default):
            continue
        if index is None:
            raise metadata.refuse(f"tokenizer.ggml.{key}_token_id", f"is missing, but add_{key}_token asks for it")
        side.append(tokens[index])
        special[tokens[index]] = index
    if special:
        pair = [f"{token}:1" for token in before] + ["$B:1"] + [f"{token}:1" for token in after]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", *after, *pair], special_tokens=list(special.items())
        )


def _tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    tokens, _ = read_vocabulary(metadata)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for field, key in SPECIAL_TOKENS.items():
        index = token_id(metadata, f"{key}_token_id", len(tokens))
        if index is not None:
            config[field] = tokens[index]
    context = metadata.integer(f"{metadata.text('general.architecture')}.context_length")
    if context is not None:
        config["model_max_length"] = context
    templates = read_templates(metadata)
    if templates.keys() == {DEFAULT}:
        config["chat_template"] = templates[DEFAULT]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return config


def _generation_config(metadata: Metadata) -> dict[str, Any]:
    tokens, _ = read_vocabulary(metadata)
    config: dict[str, Any] = {"eos_token_id": end_token_ids(metadata)}
    for field, key in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        index = token_id(metadata, key, len(tokens))
        if index is not None:
            config[field] = index
    return config
