"""More architectures as llama.cpp's converter writes them, whose layers all attend: for files that tests read.

Sources: conversion/{base,granite,qwen,glm,olmo,command_r,exaone,llama}.py at the commits that the tables of
coreai_recipes/checkpoint/gguf name.
"""

from typing import Any

from gguf_hybrids import base_pairs, granite_as_stored
from torch import Tensor
from transformers import PreTrainedConfig

INTERLEAVED = ("granitemoe", "arcee")
PLAIN = (
    "qwen2moe",
    "olmoe",
    "seed_oss",
    "ernie4_5",
    "exaone4",
    "command-r",
    "cohere2",
    "qwen2vl",
    "qwen3vl",
    "qwen3vlmoe",
)
LATER = ("glm4", "glm4moe", "dots1", "minimax-m2", "hunyuan-dense", "afmoe", "phi2")
MIXTURES = (*INTERLEAVED, *PLAIN, *LATER)


def mixture_as_stored(
    architecture: str, config: PreTrainedConfig, name: str, tensor: Tensor
) -> list[tuple[str, Tensor]]:
    """modify_tensors of the architecture's class."""
    if "shared_mlp" in name or "block_sparse_moe" in name:
        return granite_as_stored(config, name, tensor)
    if name.endswith("experts.gate_up_proj"):
        halves = zip(("gate", "up"), tensor.chunk(2, 1), strict=True)
        return [(name.replace("gate_up_proj", f"{half}_proj.weight"), rows) for half, rows in halves]
    if name.endswith("experts.down_proj"):
        return [(f"{name}.weight", tensor)]
    if name.endswith(".expert_bias"):
        return [(f"{name}.bias", tensor)]
    if architecture in INTERLEAVED and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2)
        return [(name, halves.reshape(tensor.shape).contiguous())]
    return [(name.replace("e_score_correction_bias", "e_score_correction.bias"), tensor)]


def mixture_pairs(architecture: str, config: PreTrainedConfig) -> dict[str, Any]:
    """set_gguf_parameters of the architecture's class."""
    fields = config.to_dict()
    head_dim = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    if architecture == "granitemoe":
        fields.pop("head_dim", None)
    share = (fields.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
    names: dict[str, dict[str, str]] = {
        "granitemoe": {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
            "expert_shared_feed_forward_length": "shared_intermediate_size",
        },
        "qwen3vlmoe": {"expert_feed_forward_length": "moe_intermediate_size"},
        "qwen2moe": {
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        "glm4moe": {
            "expert_count": "n_routed_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_count": "n_shared_experts",
            "leading_dense_block_count": "first_k_dense_replace",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_weights_norm": "norm_topk_prob",
        },
        "dots1": {
            "expert_count": "n_routed_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_count": "n_shared_experts",
            "leading_dense_block_count": "first_k_dense_replace",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_weights_norm": "norm_topk_prob",
        },
        "minimax-m2": {"expert_feed_forward_length": "intermediate_size"},
        "afmoe": {
            "vocab_size": "vocab_size",
            "expert_shared_count": "num_shared_experts",
            "expert_feed_forward_length": "moe_intermediate_size",
            "leading_dense_block_count": "num_dense_layers",
            "expert_weights_scale": "route_scale",
            "attention.sliding_window": "sliding_window",
        },
        "phi2": {"attention.layer_norm_epsilon": "layer_norm_eps"},
        "command-r": {"attention.layer_norm_epsilon": "layer_norm_eps", "logit_scale": "logit_scale"},
        "cohere2": {
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "logit_scale": "logit_scale",
            "attention.sliding_window": "sliding_window",
            "vocab_size": "vocab_size",
        },
        "exaone4": {"vocab_size": "vocab_size", "attention.sliding_window": "sliding_window"},
        "arcee": {"vocab_size": "vocab_size"},
    }
    stated = names.get(architecture, {}).items()
    pairs = base_pairs(fields) | {key: fields[field] for key, field in stated if fields.get(field) is not None}
    if architecture in (*INTERLEAVED, "cohere2", "glm4", "glm4moe", "minimax-m2", "phi2", "afmoe"):
        pairs["rope.dimension_count"] = int(head_dim * share)
    if architecture in ("glm4moe", "dots1", "minimax-m2", "afmoe"):
        pairs["expert_gating_func"] = 2
    if architecture == "phi2":
        del pairs["rope.freq_base"]
    if architecture == "hunyuan-dense":
        pairs |= {
            "rope.scaling.type": "none",
            "rope.scaling.factor": 1.0,
            "rope.scaling.original_context_length": 2**18,
        }
    if architecture == "exaone4":
        pairs["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in fields["layer_types"]]
    if architecture in ("command-r", "cohere2"):
        pairs["rope.scaling.type"] = "none"
        pairs.pop("attention.layer_norm_rms_epsilon", None)
    if architecture in ("qwen2vl", "qwen3vl", "qwen3vlmoe"):
        pairs["rope.dimension_sections"] = [16, 24, 24, 0]
    if architecture in ("qwen3vl", "qwen3vlmoe"):
        pairs["n_deepstack_layers"] = 3
    return pairs
