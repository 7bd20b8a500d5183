"""The static form that the Swift runner of Apple's coreai-models loads: names and shapes of its calls, metadata.json.

Its sources are the specification, as of commit 86b363dca67cf276c1a5c96eea5e4b57e3a0643c of
github.com/apple/coreai-models, under swift/Sources: CoreAIShared/Runtime/ModelStructure.swift (by which functions it
knows the form), CoreAILanguageModels/InferenceEngines/CoreAIStaticShapeEngine.swift (the calls), and Bundle/ of both
(metadata.json). docs/hosts.md says what follows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METADATA, VERSION = "metadata.json", "0.2"
TOKENIZER = "tokenizer"  # the folder where the tokenizer's files are looked for

LOAD, GATHER, EXTEND, PROMPT = "load_embeddings", "gather_embeddings", "extend", "prompt_opt"
TABLE, IDS, GATHERED = "embedding_table", "in_new_token_ids", "gathered_embeddings"
EMBEDDED, POSITIONS, STEP, MASK = "transformer_input", "position_ids", "in_step", "causal_mask"
LOGITS = "out_logits"
CACHES = ("key_cache", "value_cache")
HIDDEN = -40_000.0  # what its mask holds where a token does not see a position
MOST_POSITIONS = 1 << 16  # they are unsigned integers of 16 bits

Ports = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name


@dataclass(frozen=True)
class StaticForm:
    """What decides an asset's calls: the positions of a session, the tokens of a prefill, those of the model, and the
    width of a row of its table; and what the bundle is called, and its tokenizer."""

    name: str
    tokenizer: str
    context: int
    prefill: int
    vocab_size: int
    width: int

    @property
    def queries(self) -> tuple[int, ...]:
        """The tokens of a call."""
        return (1, self.prefill)


def gather_name(query: int) -> str:
    return f"{GATHER}_{query}"


def extend_name(context: int, query: int) -> str:
    return f"{EXTEND}_{context}_{query}"


def prompt_name(context: int, query: int) -> str:
    return f"{PROMPT}_{context}_{query}"


def inputs_of(form: StaticForm, query: int) -> Ports:
    """Of a call through the layers. `in_step` is the row that the first token is written to."""
    return {
        EMBEDDED: ("float16", (1, query, 1, form.width)),
        POSITIONS: ("uint16", (1, query)),
        STEP: ("int32", (1,)),
        MASK: ("float16", (1, form.context, 1, query)),
    }


def functions_of(form: StaticForm) -> dict[str, tuple[int, Ports, Ports]]:
    """By its name of a function: the tokens of a call, inputs, outputs. The table holds the rows of all tokens."""
    table: Ports = {TABLE: ("float16", (form.vocab_size, 1, form.width))}
    found: dict[str, tuple[int, Ports, Ports]] = {LOAD: (form.vocab_size, {}, table)}
    for query in form.queries:
        gathered: Ports = {GATHERED: ("float16", (1, query, 1, form.width))}
        found[gather_name(query)] = query, {IDS: ("int32", (1, query))} | table, gathered
    for query in form.queries:
        logits: Ports = {LOGITS: ("float16", (1, 1, query, form.vocab_size))}
        found[extend_name(form.context, query)] = query, inputs_of(form, query), logits
    # of a prompt longer than a call, where no logits are looked at
    prefill = form.prefill
    nothing: Ports = {LOGITS: ("float16", (1, 1, 1, 1))}
    found[prompt_name(form.context, prefill)] = prefill, inputs_of(form, prefill), nothing
    return found


def files_of(form: StaticForm, package: str) -> dict[str, str]:
    """The text of the files that the runner reads beside the asset and the tokenizer's."""
    return bundle_files(form.name, form.tokenizer, form.context, form.vocab_size, package)


def bundle_files(
    name: str, tokenizer: str, context: int, vocab_size: int, package: str, more: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """metadata.json of either form, with what else it says of the language model."""
    said = {
        "metadata_version": VERSION,
        "kind": "llm",
        "name": name,
        "assets": {"main": package},
        "language": {
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "max_context_length": context,
            "embedded_tokenizer": True,
            **(more or {}),
        },
        "source": {"model_definition": "torch", "hf_model_id": tokenizer},
    }
    return {METADATA: json.dumps(said, indent=2, ensure_ascii=False) + "\n"}


@dataclass(frozen=True)
class Settings:
    """What the runner takes from metadata.json."""

    package: str
    context: int
    vocab_size: int

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> "Settings":
        """From the parsed file. Raises ValueError where the runner would stop."""
        if (version := metadata.get("metadata_version", "0.1")) != VERSION:
            raise ValueError(f"{METADATA}: metadata_version is {version}, and {VERSION} is known")
        if (kind := metadata.get("kind")) != "llm":
            raise ValueError(f"{METADATA}: kind is {kind}, and not llm")
        assets, language = metadata.get("assets"), metadata.get("language")
        if not isinstance(assets, Mapping) or not isinstance(assets.get("main"), str):
            raise ValueError(f"{METADATA}: assets.main is missing")
        if not isinstance(language, Mapping) or not isinstance(language.get("tokenizer"), str):
            raise ValueError(f"{METADATA}: language.tokenizer is missing")
        sizes = [language.get(name) for name in ("max_context_length", "vocab_size")]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"{METADATA}: language has no max_context_length and vocab_size above 0")
        return cls(assets["main"], *sizes)  # type: ignore[arg-type]
