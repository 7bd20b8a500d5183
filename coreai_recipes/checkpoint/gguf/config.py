"""A GGUF file's metadata in the words of transformers' config.json."""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from coreai_recipes.checkpoint.gguf.architecture import Architecture, check_layers
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.rope import rope_settings
from coreai_recipes.errors import CheckpointError

# Sizes that a file must state; the other keys have a default in the architecture's own row, or follow from these.
REQUIRED = ("context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count")
WHOLE_NUMBERS = {"num_key_value_heads", "head_dim", "sliding_window"}
TOKEN_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def rebuild_config(
    architecture: Architecture,
    metadata: Metadata,
    tensors: Collection[str],
    vocab_size: int,
    rope_factors: dict[str, Tensor],
) -> dict[str, Any]:
    """config.json as transformers reads it.

    `tensors` are the names that the file has, its own; `rope_factors` the tensors that hold rotary factors.
    Raises CheckpointError with every key that is not understood, or that says what transformers cannot express.
    """
    CheckpointError.collect(architecture.unknown_keys(metadata))
    prefix = architecture.name
    sizes = {architecture.keys[key]: metadata.positive(f"{prefix}.{key}") for key in REQUIRED}
    check_layers(metadata.path, tensors, sizes["num_hidden_layers"])
    tokens = metadata.strings("tokenizer.ggml.tokens") or ()
    if len(tokens) > vocab_size:
        raise metadata.refuse("tokenizer.ggml.tokens", f"has {len(tokens)} tokens, token_embd.weight {vocab_size} rows")
    config = {**architecture.config, "vocab_size": vocab_size, **sizes}
    for key, field in architecture.keys.items():
        full = f"{prefix}.{key}"
        if key not in REQUIRED and metadata.has(full):
            config[field] = metadata.integer(full) if field in WHOLE_NUMBERS else metadata.number(full)
        elif key.startswith("attention.layer_norm"):
            raise metadata.refuse(full, "is missing")
    if config["rope_theta"] <= 0:
        raise metadata.refuse(f"{prefix}.rope.freq_base", f"is {config['rope_theta']}")
    _complete_heads(architecture, metadata, config)
    _complete_sliding(architecture, config)
    config.update(rope_settings(architecture, metadata, config, rope_factors))
    for field, pattern in architecture.flags.items():
        config[field] = any(pattern.format(layer=layer) in tensors for layer in range(config["num_hidden_layers"]))
    # llama.cpp writes an output projection only when it is not the embedding table.
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for field, key in TOKEN_IDS.items():
        value = metadata.integer(f"tokenizer.ggml.{key}")
        config[field] = value if value is not None and value < vocab_size else None
    return config


def _complete_heads(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> None:
    """head_dim, num_key_value_heads and query_pre_attn_scalar, by llama.cpp's rules where the file is silent."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    config["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    if heads % config["num_key_value_heads"]:
        problem = f"is {config['num_key_value_heads']}, which does not divide the {heads} attention heads"
        raise metadata.refuse(f"{architecture.name}.attention.head_count_kv", problem)
    if not config.get("head_dim"):
        if hidden % heads:
            raise metadata.refuse(f"{architecture.name}.attention.head_count", f"is {heads}, hidden_size is {hidden}")
        config["head_dim"] = hidden // heads
    value_length = f"{architecture.name}.attention.value_length"
    if metadata.integer(value_length, config["head_dim"]) != config["head_dim"]:
        raise metadata.refuse(value_length, f"is not attention.key_length, {config['head_dim']}")
    if architecture.query_scale is not None:
        widest = config["num_hidden_layers"] == architecture.query_scale["by_hidden_size_with_layers"]
        config["query_pre_attn_scalar"] = hidden // heads if widest else config["head_dim"]


def _complete_sliding(architecture: Architecture, config: dict[str, Any]) -> None:
    """layer_types where layers differ; and no window, rather than one of 0, where none slides."""
    if config.get("sliding_window"):
        config.update(architecture.with_sliding_window)
    elif "sliding_window" in architecture.config:
        config["sliding_window"] = None
    else:
        config.pop("sliding_window", None)  # 0 says that there is none, and the family may not know the field
    if architecture.sliding_period:
        period = architecture.sliding_period if config.get("sliding_window") else 1
        config["layer_types"] = [
            "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
            for layer in range(config["num_hidden_layers"])
        ]
