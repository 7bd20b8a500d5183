"""Latent attention (DeepSeek V2's) in a GGUF file's words: written as if one head of the narrow stream attended."""

from typing import Any

from coreai_recipes.checkpoint.gguf.architecture import Architecture
from coreai_recipes.checkpoint.gguf.metadata import Metadata


def complete_latent(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> None:
    """Sizes of a head, and what V2's and Kimi Linear's configs have beyond what a key says.

    Files from before 2025 state a head's own sizes as key_length and value_length; newer ones as key_length_mla and
    value_length_mla, and those of the one head that reads the stream in the others' place.
    """
    prefix = f"{architecture.name}.attention"
    config.pop("head_dim", None)
    rank, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    absorbed = metadata.has(f"{prefix}.key_length_mla")
    ending = "_mla" if absorbed else ""
    width = metadata.positive(f"{prefix}.key_length{ending}")
    if width <= turned:
        raise metadata.refuse(f"{prefix}.key_length{ending}", f"is {width}, of which {turned} turn")
    heads = config["num_attention_heads"]
    stream = {"key_length": rank + turned, "value_length": rank} if absorbed else {}
    for key, expected in {**stream, "head_count_kv": 1 if absorbed else heads}.items():
        if f"attention.{key}" in architecture.checked:
            stated = metadata.integer(f"{prefix}.{key}", expected)
            if stated != expected:
                raise metadata.refuse(f"{prefix}.{key}", f"is {stated}, not {expected}, as the other keys imply")
    config.update(
        num_key_value_heads=heads,
        qk_nope_head_dim=width - turned,
        v_head_dim=metadata.positive(f"{prefix}.value_length{ending}"),
        head_dim=turned,
    )
    if "linear_head_dim" in config:
        config["linear_num_heads"] = heads
    if config["model_type"] == "deepseek_v2":
        config["topk_method"] = "group_limited_greedy" if (config.get("n_group") or 1) > 1 else "greedy"
