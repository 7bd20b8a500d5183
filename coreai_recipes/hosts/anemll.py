"""The monolithic form that ANEMLL's Swift host loads: names and shapes of its calls, meta.yaml, config.json.

Its sources are the specification, as of commit fb42f60b2e7a7b4709052c7146d37480bf21941e of github.com/Anemll/Anemll
(0.3.5), under anemll-swift-cli/Sources/AnemllCore: YAMLConfig.swift (what it reads of meta.yaml), ModelLoader.swift
(the functions), InferenceManager.swift (the calls), Tokenizer.swift (end tokens). docs/hosts.md says what follows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coreai_recipes.hosts.logits import Pieces

META, CONFIG = "meta.yaml", "config.json"
VERSION = "0.3.5"  # of the host whose form it is: 0.1.1 would be called otherwise
OURS = {"infer": "decode", "prefill": "prefill"}  # its functions, and what they are in this project's words
NEW_IDS, NEW_VALUES = "argmax_idx", "argmax_val"

Ports = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name


@dataclass(frozen=True)
class AnemllForm:
    """What decides a package's calls: the positions of a session, the tokens of a prefill, those of the model, and
    whether it gives the best one instead of logits; and what its folder is called and holds."""

    name: str
    model_type: str
    context: int
    prefill: int
    vocab_size: int
    chooses: bool

    @property
    def sizes(self) -> list[int]:
        """The tokens of each part of what a call gives: the best token is one of all of them."""
        return [self.vocab_size] if self.chooses else logit_sizes(self.vocab_size)


def logit_sizes(vocab_size: int) -> list[int]:
    """The tokens of `logits1` ... `logitsN`. The host takes the best of all that they hold, so there is no padding."""
    pieces = Pieces(vocab_size)
    return [pieces.columns] * (pieces.count - 1) + [vocab_size - (pieces.count - 1) * pieces.columns]


def inputs_of(query: int, context: int) -> Ports:
    """Of a call with `query` tokens; the mask is 0 where a token sees a position, and -inf elsewhere."""
    return {
        "input_ids": ("int32", (1, query)),
        "position_ids": ("int32", (query,)),
        "causal_mask": ("float16", (1, 1, query, context)),
        "current_pos": ("int32", (1,)),
    }


def outputs_of(vocab_size: int, chooses: bool) -> Ports:
    """Of the last token: its logits in parts, or the best token and its logit as those of one part."""
    if chooses:
        return {NEW_IDS: ("int32", (1,)), NEW_VALUES: ("float16", (1,))}
    sizes = enumerate(logit_sizes(vocab_size), 1)
    return {f"logits{number}": ("float16", (1, 1, size)) for number, size in sizes}


def functions_of(form: AnemllForm) -> dict[str, tuple[int, Ports, Ports]]:
    """By its name of a function: the tokens of a call, inputs, outputs."""
    outputs, queries = outputs_of(form.vocab_size, form.chooses), {"infer": 1, "prefill": form.prefill}
    return {name: (query, inputs_of(query, form.context), outputs) for name, query in queries.items()}


def files_of(form: AnemllForm, package: str, end_tokens: Sequence[int]) -> dict[str, str]:
    """The text of the files that the host reads beside the package and the tokenizer's.

    It takes the tokens that end an answer from config.json, and writes one of its own where there is none.
    """
    config = {"model_type": form.model_type, "eos_token_id": sorted(end_tokens)}
    return {META: _meta(form, package), CONFIG: json.dumps(config, indent=2) + "\n"}


def _meta(form: AnemllForm, package: str) -> str:
    """meta.yaml. Nothing is left to the host's defaults, some of which depend on the prefix or stop it."""
    compiled = package.removesuffix(".mlpackage") + ".mlmodelc"
    lines = [
        "# What ANEMLL's host reads of this folder (docs/hosts.md). It loads the compiled package:",
        f"#     xcrun coremlcompiler compile {package} .",
        "model_info:",
        f"  name: {json.dumps(form.name)}",
        f"  version: {json.dumps(VERSION)}",
        "  model_type: monolithic",
        "  parameters:",
        f"    context_length: {form.context}",
        f"    batch_size: {form.prefill}",
        "    num_chunks: 1",
        "    model_prefix: recipe",
        f"    monolithic_model: {json.dumps(compiled)}",
        f"    split_lm_head: {len(form.sizes)}",
        f"    argmax_in_model: {json.dumps(form.chooses)}",
        f"    vocab_size: {form.vocab_size}",
        f"    lm_head_chunk_sizes: {json.dumps(form.sizes)}",
        "    update_mask_prefill: false",
        "    prefill_dynamic_slice: false",
        "    functions: [infer, prefill]",
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Settings:
    """What the host takes from meta.yaml, by its own rules."""

    package: str
    context: int
    prefill: int
    parts: int
    chooses: bool
    sizes: tuple[int, ...]

    @classmethod
    def read(cls, meta: Mapping[str, Any]) -> "Settings":
        """From the parsed file, with the host's defaults. Raises ValueError where the host would stop, or look for
        functions and inputs of other forms."""
        info = meta.get("model_info")
        said = info.get("parameters") if isinstance(info, Mapping) else None
        if not isinstance(info, Mapping) or not isinstance(said, Mapping):
            raise ValueError(f"{META}: it has no model_info with parameters")
        prefix = str(said.get("model_prefix", "llama"))
        context = said.get("context_length", 2048)
        if info.get("model_type", "chunked") != "monolithic":
            raise ValueError(f"{META}: model_type is not monolithic")
        if "sliding_window" in said or (prefix.lower().startswith("gemma3") and context > 512):
            raise ValueError(f"{META}: from its sliding window on, the host calls functions that rotate a cache")
        if said.get("update_mask_prefill", False):
            raise ValueError(f"{META}: with update_mask_prefill, the host gives one more input")
        return cls(
            said.get("monolithic_model", f"{prefix}_monolithic_full.mlmodelc"),
            context,
            said.get("batch_size", 32),
            said.get("split_lm_head", 8),
            said.get("argmax_in_model", False),
            tuple(said.get("lm_head_chunk_sizes", ())),
        )
