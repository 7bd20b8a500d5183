"""A GGUF file's metadata in the words of transformers' config.json."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.checkpoint.gguf.architecture import EXPERTS, Architecture, check_layers
from coreai_recipes.checkpoint.gguf.header import StoredTensor
from coreai_recipes.checkpoint.gguf.latent import complete_latent
from coreai_recipes.checkpoint.gguf.layers import (
    KV_HEADS,
    WIDTHS,
    complete_kinds,
    complete_mixers,
    complete_sliding,
    draft_layers,
)
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.rope import ROPE_TENSORS, rope_settings
from coreai_recipes.checkpoint.gguf.rows import read_rows, rows_together
from coreai_recipes.checkpoint.gguf.sparsity import complete_sparsity
from coreai_recipes.errors import CheckpointError

FRACTIONS = {
    "rms_norm_eps", "norm_eps", "rope_theta", "attn_logit_softcapping", "final_logit_softcapping",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "layer_norm_epsilon",
    "routed_scaling_factor", "layer_norm_eps", "logit_scale", "clip_qkv", "route_scale",
}  # fmt: skip
USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
SWITCHES = {"norm_topk_prob"}

MOST_EXPERTS = 1 << 12  # llama.cpp's LLAMA_MAX_EXPERTS is 512
TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def rebuild_config(
    architecture: Architecture, metadata: Metadata, tensors: Mapping[str, StoredTensor]
) -> dict[str, Any]:
    """config.json as transformers reads it.

    Raises CheckpointError with every key that is not understood, or that says what transformers cannot express.
    """
    CheckpointError.collect(architecture.unknown_keys(metadata))
    prefix = architecture.name
    apart = _per_layer(architecture)
    given: dict[str, Any] = {
        field: _value(metadata, full, field)
        for key, field in architecture.keys.items()
        if metadata.has(full := f"{prefix}.{key}") and key not in apart
    }
    for key in architecture.required:
        if key not in apart and not given.get(architecture.keys[key]):
            raise metadata.refuse(f"{prefix}.{key}", "is 0" if metadata.has(f"{prefix}.{key}") else "is missing")
    given["num_hidden_layers"] -= draft_layers(architecture, metadata)
    check_layers(metadata.path, tensors, given["num_hidden_layers"])
    vocab_size = tensors["token_embd.weight"].shape[0]
    tokens = metadata.strings("tokenizer.ggml.tokens") or ()
    if len(tokens) > vocab_size:
        raise metadata.refuse("tokenizer.ggml.tokens", f"has {len(tokens)} tokens, token_embd.weight {vocab_size} rows")
    variants = [config for key, config in architecture.variants.items() if metadata.values.get(f"{prefix}.{key}")]
    config = {**architecture.config, "vocab_size": vocab_size, **given}
    if architecture.by_gating:
        variants.append(architecture.by_gating.get(metadata.integer(f"{prefix}.expert_gating_func", 1) or 1, {}))
    for variant in variants:
        config.update(variant)
    config.update({field: config.get(field) or value for field, value in architecture.zero.items()})
    if config.get("rope_theta", 1.0) <= 0:
        raise metadata.refuse(f"{prefix}.rope.freq_base", f"is {config['rope_theta']}")
    complete_sliding(architecture, metadata, config)
    complete_mixers(architecture, metadata, config, tensors)
    _complete_quotients(architecture, metadata, config)
    complete_sparsity(architecture, metadata, config)
    for field, name in architecture.row_counts.items():
        if name not in tensors:
            raise CheckpointError(f"{metadata.path}: has no {name}")
        config[field] = tensors[name].shape[0]
    if architecture.sizes_per_kind:
        complete_kinds(architecture, metadata, config, tensors)
    if architecture.latent:
        complete_latent(architecture, metadata, config)
    else:
        _complete_heads(architecture, metadata, config)
    _complete_experts(architecture, metadata, config, tensors)
    if "rope_theta" in config:
        names = [name for name in ROPE_TENSORS[architecture.rope_tensors] if name in tensors]
        rope = rope_settings(architecture, metadata, config, {name: _read_whole(tensors[name]) for name in names})
        if "rope_parameters" in rope:
            del config["rope_theta"]
        config.update(rope)
    for field, pattern in architecture.flags.items():
        if any(pattern.format(layer=layer) in tensors for layer in range(config["num_hidden_layers"])):
            config[field] = True  # and nothing where there is none: a Mistral has no such field
    # llama.cpp writes an output projection only when it is not the embedding table.
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if architecture.untied and config["tie_word_embeddings"]:
        raise CheckpointError(f"{metadata.path}: has no output.weight: {architecture.untied}")
    for field, key in TOKEN_IDS.items():
        value = metadata.integer(f"tokenizer.ggml.{key}")
        config[field] = value if value is not None and value < vocab_size else None
    return config


def _per_layer(architecture: Architecture) -> tuple[str, ...]:
    """Keys that hold a value for each layer, which layers.py reads where an architecture's layers differ in them."""
    if architecture.sizes_per_kind or architecture.one_mixer:
        return (WIDTHS, KV_HEADS)
    return (KV_HEADS,) if architecture.without_kv_heads or architecture.layer_periods else ()


def _value(metadata: Metadata, key: str, field: str) -> Any:
    if field in SWITCHES:
        return metadata.flag(key, False)
    return metadata.number(key) if field in FRACTIONS else metadata.integer(key)


def _complete_quotients(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> None:
    """Sizes that the file has as a product: the width of a head of which it has all heads' together."""
    for field, (product, count) in architecture.quotients.items():
        of, by = (metadata.positive(f"{architecture.name}.{key}") for key in (product, count))
        if of % by:
            raise metadata.refuse(f"{architecture.name}.{product}", f"is {of}, which {count}, {by}, does not divide")
        config[field] = of // by


def _complete_heads(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> None:
    """head_dim, num_key_value_heads and what scales the scores, by llama.cpp's rules where the file is silent."""
    if "num_attention_heads" not in config:
        return  # no layer attends
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    config["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    for field in ("num_key_value_heads", "num_global_key_value_heads"):
        count = config.get(field)
        if count and heads % count:
            problem = f"is {count}, which does not divide the {heads} attention heads"
            raise metadata.refuse(f"{architecture.name}.attention.head_count_kv", problem)
    if not config.get("head_dim"):
        if hidden % heads:
            raise metadata.refuse(f"{architecture.name}.attention.head_count", f"is {heads}, hidden_size is {hidden}")
        config["head_dim"] = hidden // heads
    for key in ("attention.key_length", "attention.key_length_swa"):
        value_length = f"{architecture.name}.{key.replace('key', 'value')}"
        if key in architecture.keys:
            expected = config[architecture.keys[key]]
            if metadata.integer(value_length, expected) != expected:
                raise metadata.refuse(value_length, f"is not {key}, {expected}")
    if architecture.query_scale is not None:
        widest = config["num_hidden_layers"] == architecture.query_scale["by_hidden_size_with_layers"]
        config["query_pre_attn_scalar"] = hidden // heads if widest else config["head_dim"]
    if architecture.head_scale and not config.get(architecture.head_scale):
        config[architecture.head_scale] = config["head_dim"] ** -0.5


def _complete_experts(
    architecture: Architecture, metadata: Metadata, config: dict[str, Any], tensors: Mapping[str, StoredTensor]
) -> None:
    """The experts' width where the file leaves it out, and Gemma 4's per-layer table and switch for experts."""
    prefix = architecture.name
    experts = next((config[field] for field in EXPERTS if field in config), None)
    used = next((config[field] for field in USED if field in config), None)
    if (experts or used) and not (experts and used and used <= experts):
        raise metadata.refuse(f"{prefix}.expert_used_count", f"is {used}, but there are {experts or 0} experts")
    if experts and experts > MOST_EXPERTS:
        raise metadata.refuse(f"{prefix}.expert_count", f"is {experts}; at most {MOST_EXPERTS} are read")
    if "moe_intermediate_size" in architecture.keys.values() and experts and not config.get("moe_intermediate_size"):
        if not config.get("intermediate_size"):
            raise metadata.refuse(f"{prefix}.expert_feed_forward_length", "is missing")
        config["moe_intermediate_size"] = config["intermediate_size"] // used
    if architecture.sizes_per_kind:
        config["enable_moe_block"] = bool(experts)
        if not experts:
            config.update(num_experts=None, top_k_experts=None, moe_intermediate_size=None)
        if config["hidden_size_per_layer_input"]:
            table = tensors.get("per_layer_token_embd.weight")
            if table is None:
                raise CheckpointError(f"{metadata.path}: has no per_layer_token_embd.weight")
            config["vocab_size_per_layer_input"] = table.shape[0]


def _read_whole(stored: StoredTensor) -> Tensor:
    blocks = read_rows(stored, range(stored.shape[0]), rows_together(stored))
    return torch.cat([block.clone() for block in blocks])
