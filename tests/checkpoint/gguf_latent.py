"""Latent attention as llama.cpp's converter writes it (conversion/deepseek.py and kimi_linear.py), for tests."""

from typing import Any

import torch
from gguf_hybrids import base_pairs
from torch import Tensor
from transformers import PreTrainedConfig

LATENT = ("deepseek2", "kimi-linear")


def latent_as_stored(
    architecture: str, config: PreTrainedConfig, name: str, tensor: Tensor
) -> list[tuple[str, Tensor]]:
    """DeepseekV2Model.modify_tensors, KimiLinearModel.modify_tensors."""
    name = name.replace(".forget_gate.", ".")  # the hub's names of Kimi Linear are flat
    block = ".".join(name.split(".")[:3])
    if name.endswith("kv_b_proj.weight"):
        return split_heads(config, name, tensor)
    if ".experts." in name:
        parts = dict(zip(("gate", "up"), tensor.chunk(2, 1), strict=True)) if "gate_up" in name else {"down": tensor}
        return [(f"{block}.mlp.experts.{part}_proj.weight", rows) for part, rows in parts.items()]
    if name.endswith(".conv1d.weight"):  # transformers joins what the hub has apart
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return [(name.replace("conv1d", f"{one}_conv1d"), rows.reshape(1, len(rows), 1, -1)) for one, rows in parts]
    if name.endswith(".A_log"):
        return [(name, -torch.exp(tensor))]
    if name.endswith(".dt_bias"):
        return [(name.replace(".dt_bias", ".dt_proj.bias"), tensor)]
    return [(name.replace("e_score_correction_bias", "e_score_correction.bias"), tensor)]


def split_heads(config: PreTrainedConfig, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Of every head the keys, transposed, and the values."""
    heads = tensor.view(config.num_attention_heads, -1, tensor.shape[-1])
    keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], 1)
    return [
        (name.replace("kv_b_proj", "k_b_proj"), keys.transpose(1, 2)),
        (name.replace("kv_b_proj", "v_b_proj"), values),
    ]


def latent_pairs(architecture: str, config: PreTrainedConfig) -> dict[str, Any]:
    """set_gguf_parameters of both: the stream attends as one KV head, a layer of the delta rule as none."""
    fields = config.to_dict()
    rank, turned = fields["kv_lora_rank"], fields["qk_rope_head_dim"]
    pairs = base_pairs(fields) | {
        "vocab_size": fields["vocab_size"],
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + turned,
        "attention.value_length": rank,
        "attention.key_length_mla": fields["qk_nope_head_dim"] + turned,
        "attention.value_length_mla": fields["v_head_dim"],
        "rope.dimension_count": turned,
        "expert_feed_forward_length": fields["moe_intermediate_size"],
        "expert_weights_scale": fields["routed_scaling_factor"],
        "leading_dense_block_count": fields["first_k_dense_replace"],
    }
    if fields["q_lora_rank"] is not None:
        pairs["attention.q_lora_rank"] = fields["q_lora_rank"]
    if architecture == "deepseek2":
        scores = 2 if fields["model_type"] == "deepseek_v3" else 1  # scoring_func of the released configs
        pairs |= {
            "expert_count": fields["n_routed_experts"],
            "expert_shared_count": fields["n_shared_experts"],
            "expert_gating_func": scores,
        }
        if fields["norm_topk_prob"]:
            pairs["expert_weights_norm"] = True
        if "mscale_all_dim" in fields["rope_parameters"]:
            pairs["rope.scaling.yarn_log_multiplier"] = 0.1 * fields["rope_parameters"]["mscale_all_dim"]
        return pairs
    heads = [1 if kind == "full_attention" else 0 for kind in fields["layer_types"]]
    return pairs | {
        "context_length": fields["model_max_length"],
        "attention.head_count_kv": heads,
        "attention.value_length": fields["head_dim"],
        "ssm.conv_kernel": fields["linear_conv_kernel_dim"],
        "kda.head_dim": fields["linear_head_dim"],
        "expert_used_count": fields["num_experts_per_token"],
        "expert_shared_count": fields["num_shared_experts"],
        "expert_gating_func": 2,
    }
