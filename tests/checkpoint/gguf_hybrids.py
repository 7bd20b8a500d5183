"""Hybrid and recurrent architectures as llama.cpp's converter writes them: its rules, for files that tests read.

Sources: conversion/{base,qwen,granite,mamba,falcon_h1,nemotron,gemma}.py at the commits that the tables of
coreai_recipes/checkpoint/gguf name.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

QWEN = ("qwen35", "qwen35moe", "qwen3next")
NEMOTRON = ("nemotron_h", "nemotron_h_moe")
MAMBA = ("mamba", "mamba2", "jamba")
HYBRIDS = (*QWEN, *MAMBA, "lfm2moe", "granitehybrid", "falcon-h1", *NEMOTRON, "gemma3n")
UNTURNED_CONTEXT = 2**20


def gathered(architecture: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with what the converter stacks stacked (Gemma3NModel.modify_tensors)."""
    if architecture != "gemma3n":
        return state
    stacks = {
        f"model.altup_{kind}.weight": torch.stack([state[f"model.altup_{kind}.{i}.weight"] for i in range(3)])
        for kind in ("projections", "unembed_projections")
    }
    return {**{name: tensor for name, tensor in state.items() if "projections." not in name}, **stacks}


def hybrid_as_stored(
    architecture: str, config: PreTrainedConfig, name: str, tensor: Tensor
) -> list[tuple[str, Tensor]]:
    """modify_tensors of the architecture's class."""
    if architecture in QWEN:
        return qwen_as_stored(architecture, config, name, tensor)
    if architecture in MAMBA or architecture == "lfm2moe":
        return mamba_as_stored(architecture, config, name, tensor)
    if architecture == "gemma3n":
        return [(f"{name}.weight" if name.endswith("_scale") else name, tensor)]
    if architecture in NEMOTRON:
        name = name.replace("model.", "backbone.", 1).replace("e_score_correction_bias", "e_score_correction.bias")
        if ".experts." in name:
            merged = name.replace("backbone.", "model.").replace("mixer", "mlp")
            return [(f"{merged}.weight", tensor)]
    if architecture == "granitehybrid" and ("shared_mlp" in name or "block_sparse_moe" in name):
        return granite_as_stored(config, name, tensor)
    if architecture == "falcon-h1":
        tensor = multiplied(config, name, tensor)
    elif name.endswith(("q_proj.weight", "k_proj.weight")):  # LlamaModel.permute, turned or not
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape).contiguous()
    return [mamba2_as_stored(config, name, tensor)]


def mamba_as_stored(architecture: str, config: PreTrainedConfig, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """MambaModel, Mamba2Model, JambaModel and LFM2MoeModel, whose experts are stacked under names of their own."""
    if architecture == "mamba2":
        return [mamba2_as_stored(config, name, tensor)]
    block = ".".join(name.split(".")[:3])
    if ".experts." in name:
        parts = dict(zip(("gate", "up"), tensor.chunk(2, 1), strict=True)) if "gate_up" in name else {"down": tensor}
        if architecture == "jamba":
            return [(f"{block}.mlp.experts.{part}_proj.weight", rows) for part, rows in parts.items()]
        letters = {"gate": "w1", "down": "w2", "up": "w3"}
        merged = f"{block.removeprefix('model.')}.feed_forward.experts"
        return [(f"{merged}.{letters[part]}.weight", rows) for part, rows in parts.items()]
    if name.endswith(".A_log"):
        return [(name, -torch.exp(tensor))]
    if name.endswith(("conv1d.weight", "conv.conv.weight")):
        return [(name, tensor.squeeze(1))]
    return [(f"{name}.bias" if name.endswith(".expert_bias") else name, tensor)]


def mamba2_as_stored(config: PreTrainedConfig, name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Mamba2Model.modify_tensors."""
    if name.endswith(".dt_bias"):
        return name.replace(".dt_bias", ".dt_proj.bias"), tensor
    if name.endswith("conv1d.weight"):
        return name, tensor.squeeze()
    if name.endswith(".A_log"):
        return name, -torch.exp(tensor.reshape(-1, 1))
    if name.endswith(".D"):
        return name, tensor.reshape(-1, 1)
    if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        groups = getattr(config, "mamba_n_groups", None) or config.n_groups
        return name, tensor.reshape(groups, -1)
    return name, tensor


def granite_as_stored(config: PreTrainedConfig, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """GraniteMoeModel.modify_tensors; its experts as transformers has them now."""
    block, ending = f"blk.{name.split('.')[2]}", "shexp" if config.num_local_experts else ""
    if name.endswith("experts.gate_up_proj"):
        halves = zip(("gate", "up"), tensor.chunk(2, 1), strict=True)
        return [(f"{block}.ffn_{half}_exps.weight", rows) for half, rows in halves]
    if name.endswith("input_linear.weight"):
        halves = zip(("gate", "up"), tensor.chunk(2, 0), strict=True)
        return [(f"{block}.ffn_{half}{ending and '_shexp'}.weight", rows) for half, rows in halves]
    if name.endswith("shared_mlp.output_linear.weight"):
        return [(f"{block}.ffn_down{ending and '_shexp'}.weight", tensor)]
    names = {"experts.down_proj": "output_linear.weight", "router.weight": "router.layer.weight"}
    return [(next(name.replace(old, new) for old, new in names.items() if name.endswith(old)), tensor)]


def multiplied(config: PreTrainedConfig, name: str, tensor: Tensor) -> Tensor:
    """FalconH1Model.modify_tensors: the multipliers go into the weights."""
    inward, ssm = config.attention_in_multiplier, torch.tensor(config.ssm_multipliers)
    groups = config.mamba_n_groups * config.mamba_d_state
    parts = torch.tensor([config.mamba_d_ssm, config.mamba_d_ssm, groups, groups, config.mamba_n_heads])
    factors: dict[str, Any] = {
        "feed_forward.down_proj": config.mlp_multipliers[1],
        "feed_forward.gate_proj": config.mlp_multipliers[0],
        "self_attn.k_proj": config.key_multiplier * inward,
        "self_attn.q_proj": inward,
        "self_attn.v_proj": inward,
        "self_attn.o_proj": config.attention_out_multiplier,
        "mamba.out_proj": config.ssm_out_multiplier,
        "mamba.in_proj": config.ssm_in_multiplier * ssm.repeat_interleave(parts)[:, None],
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }
    return tensor * next((factor for module, factor in factors.items() if f"{module}." in name), 1.0)


def qwen_as_stored(architecture: str, config: PreTrainedConfig, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Qwen2MoeModel, Qwen3NextModel, and for Qwen3.5 _LinearAttentionVReorderBase before them."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    key_dim, value_dim = config.linear_key_head_dim, config.linear_value_head_dim
    if architecture != "qwen3next" and "linear_attn." in name:
        tensor = reordered(name, tensor, keys, values, key_dim, value_dim)
    if name.endswith("gate_up_proj"):
        gate, up = tensor.chunk(2, 1)
        start = name.removesuffix("gate_up_proj")
        return [(f"{start}gate_proj.weight", gate), (f"{start}up_proj.weight", up)]
    if name.endswith("experts.down_proj"):
        return [(f"{name}.weight", tensor)]
    if name.endswith(".A_log"):
        return [(name, -torch.exp(tensor))]
    if name.endswith(".dt_bias"):
        return [(name.replace(".dt_bias", ".dt_proj.bias"), tensor)]
    if "conv1d" in name:
        return [(name, tensor.squeeze())]
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return [(name, tensor + 1)]
    if "in_proj_qkvz" in name:
        return in_proj_parts(config, name, tensor)
    return [(name, tensor)]


def in_proj_parts(config: PreTrainedConfig, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Qwen3NextModel: q, k and v of all key heads in one tensor, z in another."""
    keys, key_dim = config.linear_num_key_heads, config.linear_key_head_dim
    share = config.linear_num_value_heads // keys * config.linear_value_head_dim
    q, k, v, z = tensor.view(keys, -1, tensor.shape[1]).split([key_dim, key_dim, share, share], 1)
    block = f"blk.{name.split('.')[2]}"
    mixed = torch.cat([part.reshape(-1, tensor.shape[1]) for part in (q, k, v)])
    return [(f"{block}.attn_qkv.weight", mixed), (f"{block}.attn_gate.weight", z.reshape(-1, tensor.shape[1]))]


def reordered(name: str, tensor: Tensor, keys: int, values: int, key_dim: int, value_dim: int) -> Tensor:
    """_LinearAttentionVReorderBase: the first value head of every key head, then the second."""

    def tile(part: Tensor, size: int) -> Tensor:
        return part.reshape(keys, values // keys, size, *part.shape[1:]).transpose(0, 1).reshape(part.shape)

    both = 2 * keys * key_dim
    if ".in_proj_qkv." in name or ".conv1d" in name:
        return torch.cat([tensor[:both], tile(tensor[both:], value_dim)])
    if ".in_proj_z." in name:
        return tile(tensor, value_dim)
    if name.endswith((".in_proj_b.weight", ".in_proj_a.weight", ".A_log", ".dt_bias")):
        return tile(tensor, 1)
    return tile(tensor.T, value_dim).T if ".out_proj." in name else tensor


def hybrid_pairs(architecture: str, config: PreTrainedConfig) -> dict[str, Any]:
    """set_gguf_parameters of the architecture's class."""
    fields = config.to_dict()
    if architecture in MAMBA:
        return mamba_pairs(architecture, fields)
    if architecture == "lfm2moe":
        return base_pairs(fields) | lfm2moe_pairs(fields)
    if architecture == "falcon-h1":
        return falcon_h1_pairs(fields)
    if architecture in QWEN:
        return base_pairs(fields) | qwen_pairs(architecture, fields)
    if architecture == "gemma3n":
        return base_pairs(fields) | gemma3n_pairs(fields)
    head_dim = fields.pop("head_dim", None)
    if architecture == "nemotron_h":  # the released configs say nothing of experts where there are none
        fields = {
            name: value
            for name, value in fields.items()
            if name not in ("num_experts_per_tok", "n_group", "topk_group")
        }
    pairs = base_pairs(fields) | granite_pairs(fields)
    return pairs if architecture == "granitehybrid" else pairs | nemotron_pairs(architecture, fields, head_dim)


def base_pairs(fields: dict[str, Any]) -> dict[str, Any]:
    """TextModel.set_gguf_parameters of conversion/base.py."""
    rope = fields.get("rope_parameters") or {}
    found: dict[str, Any] = {
        "block_count": fields.get("num_hidden_layers") or len(fields["layers_block_type"]),
        "context_length": fields.get("max_position_embeddings"),
        "embedding_length": fields["hidden_size"],
        "feed_forward_length": fields.get("intermediate_size"),
        "attention.head_count": fields.get("num_attention_heads"),
        "attention.head_count_kv": fields.get("num_key_value_heads"),
        "rope.freq_base": rope.get("full_attention", rope).get("rope_theta"),
        "rope.freq_base_swa": rope.get("sliding_attention", {}).get("rope_theta"),
        "attention.layer_norm_rms_epsilon": fields.get("rms_norm_eps", fields.get("norm_eps")),
        "attention.layer_norm_epsilon": fields.get("layer_norm_epsilon"),
        "expert_count": fields.get("num_local_experts", fields.get("num_experts")),
        "expert_used_count": fields.get("num_experts_per_tok"),
        "expert_group_count": fields.get("n_group"),
        "expert_group_used_count": fields.get("topk_group"),
        "attention.key_length": fields.get("head_dim"),
        "attention.value_length": fields.get("head_dim"),
    }
    if "scoring_func" in fields:
        found["expert_gating_func"] = {"softmax": 1, "sigmoid": 2}[fields["scoring_func"]]
    full = rope.get("full_attention", rope)
    if full.get("rope_type") == "yarn":
        found |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": full["factor"],
            "rope.scaling.original_context_length": full["original_max_position_embeddings"],
            "rope.scaling.yarn_beta_fast": full["beta_fast"],
            "rope.scaling.yarn_beta_slow": full["beta_slow"],
        }
    return {key: value for key, value in found.items() if value is not None}


def qwen_pairs(architecture: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Qwen3NextModel over Qwen2MoeModel, and _Qwen35MRopeMixin."""
    pairs: dict[str, Any] = {
        "ssm.conv_kernel": fields["linear_conv_kernel_dim"],
        "ssm.state_size": fields["linear_key_head_dim"],
        "ssm.group_count": fields["linear_num_key_heads"],
        "ssm.time_step_rank": fields["linear_num_value_heads"],
        "ssm.inner_size": fields["linear_value_head_dim"] * fields["linear_num_value_heads"],
        "full_attention_interval": 2,
        "rope.dimension_count": int(fields["head_dim"] * 0.25),
    }
    if "moe_intermediate_size" in fields:
        pairs |= {
            "expert_feed_forward_length": fields["moe_intermediate_size"],
            "expert_shared_feed_forward_length": fields["shared_expert_intermediate_size"],
        }
    return pairs if architecture == "qwen3next" else pairs | {"rope.dimension_sections": [11, 11, 10, 0]}


def granite_pairs(fields: dict[str, Any]) -> dict[str, Any]:
    """GraniteHybridModel over GraniteMoeModel over GraniteModel over LlamaModel."""
    names = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
        "expert_shared_feed_forward_length": "shared_intermediate_size",
    }
    heads = fields.get("mamba_n_heads") or fields["mamba_num_heads"]
    kinds = fields.get("layer_types") or fields["layers_block_type"]
    return {
        "vocab_size": fields["vocab_size"],
        "rope.dimension_count": fields["hidden_size"] // fields["num_attention_heads"],
        **{key: fields[field] for key, field in names.items() if fields.get(field)},
        "ssm.conv_kernel": fields.get("mamba_d_conv") or fields["conv_kernel"],
        "ssm.state_size": fields.get("mamba_d_state") or fields["ssm_state_size"],
        "ssm.group_count": fields.get("mamba_n_groups") or fields["n_groups"],
        "ssm.inner_size": heads * (fields.get("mamba_d_head") or fields["mamba_head_dim"]),
        "ssm.time_step_rank": heads,
        "attention.head_count_kv": [fields["num_key_value_heads"] if kind == "full_attention" else 0 for kind in kinds],
        "rope.scaling.finetuned": False,
        "context_length": UNTURNED_CONTEXT,
    }


def nemotron_pairs(architecture: str, fields: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """NemotronHModel, over those of Granite."""
    kind, width = ("mlp", "intermediate_size") if architecture == "nemotron_h" else ("moe", "moe_intermediate_size")
    pairs: dict[str, Any] = {
        "attention.layer_norm_rms_epsilon": fields["layer_norm_epsilon"],  # the released configs state it twice
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "feed_forward_length": [fields[width] if each == kind else 0 for each in fields["layers_block_type"]],
    }
    if kind == "mlp":
        return pairs
    return pairs | {
        "expert_used_count": fields["num_experts_per_tok"],
        "expert_feed_forward_length": fields["moe_intermediate_size"],
        "expert_shared_feed_forward_length": fields["moe_shared_expert_intermediate_size"],
        "expert_count": fields["n_routed_experts"],
        "expert_shared_count": fields["n_shared_experts"],
        "expert_weights_norm": fields["norm_topk_prob"],
        "expert_weights_scale": fields["routed_scaling_factor"],
        "expert_group_count": fields["n_group"],
    }


def falcon_h1_pairs(fields: dict[str, Any]) -> dict[str, Any]:
    """FalconH1Model over Mamba2Model, which does not ask the base."""
    return {
        "vocab_size": fields["vocab_size"],
        "context_length": fields["max_position_embeddings"],
        "embedding_length": fields["hidden_size"],
        "feed_forward_length": fields["intermediate_size"],
        "block_count": fields["num_hidden_layers"],
        "attention.head_count": fields["num_attention_heads"],
        "attention.head_count_kv": fields["num_key_value_heads"],
        "attention.key_length": fields["head_dim"],
        "attention.value_length": fields["head_dim"],
        "attention.layer_norm_rms_epsilon": fields["rms_norm_eps"],
        "rope.freq_base": fields["rope_parameters"]["rope_theta"],
        "ssm.conv_kernel": fields["mamba_d_conv"],
        "ssm.inner_size": fields["mamba_d_ssm"],
        "ssm.state_size": fields["mamba_d_state"],
        "ssm.time_step_rank": fields["mamba_d_ssm"] // fields["mamba_d_head"],
        "ssm.group_count": fields["mamba_n_groups"],
    }


def gemma3n_pairs(fields: dict[str, Any]) -> dict[str, Any]:
    """Gemma3NModel over Gemma3Model."""
    shares = torch.tensor(fields["activation_sparsity_pattern"], dtype=torch.float32)
    return {
        "attention.sliding_window": fields["sliding_window"],
        "final_logit_softcapping": fields["final_logit_softcapping"],
        "altup.active_idx": fields["altup_active_idx"],
        "altup.num_inputs": fields["altup_num_inputs"],
        "embedding_length_per_layer_input": fields["hidden_size_per_layer_input"],
        "attention.shared_kv_layers": fields["num_kv_shared_layers"],
        "activation_sparsity_scale": torch.distributions.normal.Normal(0, 1).icdf(shares).tolist(),
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in fields["layer_types"]],
    }


def mamba_pairs(architecture: str, fields: dict[str, Any]) -> dict[str, Any]:
    """MambaModel, Mamba2Model and JambaModel, which do not ask the base."""
    inner = fields["hidden_size"] * fields.get("expand", fields.get("mamba_expand"))
    pairs: dict[str, Any] = {
        "block_count": fields["num_hidden_layers"],
        "context_length": fields.get("max_position_embeddings", UNTURNED_CONTEXT),
        "embedding_length": fields["hidden_size"],
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": fields.get("layer_norm_epsilon", fields.get("rms_norm_eps")),
        "ssm.conv_kernel": fields.get("conv_kernel", fields.get("mamba_d_conv")),
        "ssm.inner_size": inner,
        "ssm.state_size": fields.get("state_size", fields.get("mamba_d_state")),
    }
    if architecture == "mamba2":
        return pairs | {"ssm.time_step_rank": inner // fields["head_dim"], "ssm.group_count": fields["n_groups"]}
    if architecture == "mamba":
        norms = fields["model_type"] == "falcon_mamba"
        return pairs | {"ssm.time_step_rank": fields["time_step_rank"], "ssm.dt_b_c_rms": norms}
    period, offset = fields["attn_layer_period"], fields["attn_layer_offset"]
    return pairs | {
        "feed_forward_length": fields["intermediate_size"],
        "attention.head_count": fields["num_attention_heads"],
        "attention.head_count_kv": [
            fields["num_key_value_heads"] if i % period == offset else 0 for i in range(fields["num_hidden_layers"])
        ],
        "ssm.time_step_rank": fields["mamba_dt_rank"],
        "expert_count": fields["num_experts"],
        "expert_used_count": fields["num_experts_per_tok"],
    }


def lfm2moe_pairs(fields: dict[str, Any]) -> dict[str, Any]:
    """LFM2MoeModel."""
    heads = [fields["num_key_value_heads"] if kind == "full_attention" else 0 for kind in fields["layer_types"]]
    return {
        "attention.head_count_kv": heads,
        "expert_feed_forward_length": fields["moe_intermediate_size"],
        "leading_dense_block_count": fields["num_dense_layers"],
        "expert_gating_func": 2,
        "vocab_size": fields["vocab_size"],
        "shortconv.l_cache": fields["conv_L_cache"],
    }
