"""Released config.json files of models whose layers attend and scan, as recipes."""

from typing import Any

import pytest
from family_configs import plain_config

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing import load_family
from coreai_recipes.recipe.importing.assembling import recipe_from_config

# tiiuae/Falcon-H1-0.5B-Instruct, in the tests of NVIDIA-NeMo/Megatron-Bridge (its mamba_d_ssm is 24 heads of 64)
FALCON_H1 = {
    "architectures": ["FalconH1ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attention_in_multiplier": 1.0, "attention_out_multiplier": 0.9375, "attn_layer_indices": None,
    "embedding_multiplier": 5.656854249492381, "head_dim": 64, "hidden_act": "silu", "hidden_size": 1024,
    "initializer_range": 0.02, "intermediate_size": 2048, "key_multiplier": 0.39062499999999994,
    "lm_head_multiplier": 0.0390625, "mamba_chunk_size": 128, "mamba_conv_bias": True, "mamba_d_conv": 4,
    "mamba_d_head": 64, "mamba_d_ssm": 1536, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1,
    "mamba_n_heads": 24, "mamba_norm_before_gate": False, "mamba_proj_bias": False, "mamba_rms_norm": False,
    "mamba_use_mlp": True, "max_position_embeddings": 16384, "mlp_bias": False,
    "mlp_multipliers": [0.8838834764831844, 0.5859375], "model_type": "falcon_h1", "num_attention_heads": 8,
    "num_hidden_layers": 36, "num_key_value_heads": 2, "projectors_bias": False, "rms_norm_eps": 1e-5,
    "rope_scaling": None, "rope_theta": 100000000000.0, "ssm_in_multiplier": 1.25,
    "ssm_multipliers": [0.3535533905932738, 0.25, 0.3535533905932738, 0.5, 0.3535533905932738],
    "ssm_out_multiplier": 0.23570226039551587, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": 32784,
}  # fmt: skip
# nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4, without what says how it is packed
NEMOTRON_3_NANO = {
    "architectures": ["NemotronHForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "chunk_size": 128, "conv_kernel": 4, "eos_token_id": 2, "expand": 2, "head_dim": 128, "hidden_dropout": 0.0,
    "hidden_size": 2688, "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "initializer_range": 0.02, "intermediate_size": 1856, "layer_norm_epsilon": 1e-05, "mamba_head_dim": 64,
    "mamba_hidden_act": "silu", "mamba_num_heads": 64, "mamba_proj_bias": False, "mamba_ssm_cache_dtype": "float32",
    "max_position_embeddings": 262144, "mlp_bias": False, "mlp_hidden_act": "relu2", "model_type": "nemotron_h",
    "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712, "n_group": 1, "n_groups": 8,
    "n_routed_experts": 128, "n_shared_experts": 1, "norm_eps": 1e-05, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts_per_tok": 6, "num_hidden_layers": 52, "num_key_value_heads": 2,
    "num_logits_to_keep": 1, "pad_token_id": 0, "partial_rotary_factor": 1.0, "rescale_prenorm_residual": True,
    "residual_in_fp32": False, "rope_theta": 10000, "routed_scaling_factor": 2.5, "sliding_window": None,
    "ssm_state_size": 128, "tie_word_embeddings": False, "time_step_floor": 0.0001, "time_step_max": 0.1,
    "time_step_min": 0.001, "topk_group": 1, "torch_dtype": "bfloat16", "transformers_version": "4.53.2",
    "use_bias": False, "use_cache": True, "use_conv_bias": True, "use_mamba_kernels": True, "vocab_size": 131072,
}  # fmt: skip


def kinds_of(config: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    model = recipe_from_config(config, "small").recipe.model
    return model.layer_kinds, {name: kind.model_dump(exclude_defaults=True) for name, kind in model.kinds.items()}


def test_falcon_h1_has_a_state_space_beside_each_attention_and_its_numbers_at_their_places() -> None:
    layers, kinds = kinds_of(FALCON_H1)
    assert layers == ("full",) * 36
    assert kinds["full"] == {
        "attention": {
            "kind": "full", "num_heads": 8, "num_kv_heads": 2, "head_dim": 64,
            "multipliers": {"key": 0.39062499999999994, "output": 0.9375},
        },
        "state_space": {
            "kind": "mamba2", "num_key_heads": 1, "num_value_heads": 24, "key_dim": 128, "value_dim": 64, "taps": 4,
            "norm": "none",
            "multipliers": {
                "input": 1.25, "gate": 0.3535533905932738, "values": 0.25, "keys": 0.3535533905932738, "queries": 0.5,
                "step": 0.3535533905932738, "output": 0.23570226039551587,
            },
        },
        "rotary": {"kind": "full", "theta": 1e11},
        "mlp": {
            "kind": "gated", "activation": "silu", "intermediate_size": 2048,
            "multipliers": {"gate": 0.8838834764831844, "output": 0.5859375},
        },
    }  # fmt: skip


def test_nemotron_3_nano_has_23_mixers_23_mixtures_and_6_attentions_as_its_pattern_spells_them() -> None:
    layers, kinds = kinds_of(NEMOTRON_3_NANO)
    letters = {"mamba": "M", "moe": "E", "full": "*"}
    assert "".join(letters[name] for name in layers) == NEMOTRON_3_NANO["hybrid_override_pattern"]
    assert kinds["mamba"]["attention"]["step_min"] == 0.001
    assert kinds["full"]["attention"]["num_kv_heads"] == 2
    assert kinds["full"]["rotary"] == {"kind": "none"}
    assert kinds["moe"] == {
        "attention": {"kind": "none"},
        "rotary": {"kind": "none"},
        "mlp": {
            "kind": "moe", "num_experts": 128, "gated": False, "activation": "relu2", "intermediate_size": 1856,
            "router": {"score": "sigmoid", "top": 6, "bias": "choice", "renorm": True, "scale": 2.5},
            "shared": {"intermediate_size": 3712},
        },
    }  # fmt: skip


def test_nemotron_3_super_s_experts_read_a_narrower_space() -> None:
    """nvidia/NVIDIA-Nemotron-3-Super-120B-A12B."""
    sizes = {"moe_latent_size": 1024, "moe_intermediate_size": 2688, "n_routed_experts": 512, "num_experts_per_tok": 22}
    mlp = kinds_of({**NEMOTRON_3_NANO, **sizes})[1]["moe"]["mlp"]
    assert (mlp["latent_size"], mlp["intermediate_size"], mlp["num_experts"], mlp["router"]["top"]) == (
        1024, 2688, 512, 22,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "fields", "said"),
    [
        (
            "falcon_h1",
            {"projectors_bias": True},
            "config.json: mamba_proj_bias: mamba_proj_bias false, projectors_bias true: "
            "not understood; this model needs a mechanism that recipes do not have",
        ),
    ],
)
def test_what_none_of_them_can_be_is_refused_by_its_field(model_type: str, fields: dict[str, Any], said: str) -> None:
    config = {"model_type": model_type, **plain_config(load_family(model_type)), **fields}
    with pytest.raises(CheckpointError) as refused:
        recipe_from_config(config, "small")
    assert str(refused.value) == said
