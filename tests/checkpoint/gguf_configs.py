"""Small configs of unusual sizes for GGUF files: each architecture, with what its table row is about."""

from typing import Any

from transformers import (
    FalconH1Config,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    NemotronConfig,
    NemotronHConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
)

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}
SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA4_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 2e4},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
DELTA = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", FULL],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
GRANITE4 = {
    "layer_types": ["linear_attention", FULL],
    "position_embedding_type": "nope",
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 12,
    "mamba_n_groups": 2,
    "shared_intermediate_size": 48,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}
FALCON_H1 = {
    "head_dim": 24,
    "mamba_d_ssm": 96,
    "mamba_norm_before_gate": False,
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_d_state": 12,
    "mamba_n_groups": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
}
NEMOTRON_H = {
    "head_dim": 24,
    "layer_norm_epsilon": 2e-5,
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 12,
}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SIZES.items() if name not in names}


CONFIGS: dict[str, tuple[str, PreTrainedConfig]] = {
    "llama": ("llama", LlamaConfig(**SIZES, head_dim=24, rope_theta=1e5)),
    "llama-biases": ("llama", LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama-llama3": ("llama", LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e5, **LLAMA3})),
    "llama-linear": (
        "llama",
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    ),
    "mistral": ("llama", MistralConfig(**SIZES, sliding_window=None)),
    "lfm2": (
        "lfm2",
        Lfm2Config(
            **{name: value for name, value in SIZES.items() if name != "rms_norm_eps"},
            norm_eps=2e-5,
            conv_L_cache=3,
            block_auto_adjust_ff_dim=False,
            layer_types=["conv", FULL],
            rope_theta=5e5,
        ),
    ),
    "qwen2": ("qwen2", Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": ("qwen3", Qwen3Config(**SIZES, head_dim=32)),
    "gemma": ("gemma", GemmaConfig(**SIZES, head_dim=24)),
    "gemma2": ("gemma2", Gemma2Config(**SIZES, head_dim=24, sliding_window=32, query_pre_attn_scalar=24)),
    "gemma3": (
        "gemma3",
        Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 7}, head_dim=24, sliding_window=32, query_pre_attn_scalar=24),
    ),
    "phi3": ("phi3", Phi3Config(**SIZES, original_max_position_embeddings=256, partial_rotary_factor=0.75)),
    "phi3-longrope": (
        "phi3",
        Phi3Config(
            **SIZES,
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "long_factor": [(15 + i) / 10 for i in range(8)],
                "short_factor": [(10 + i) / 10 for i in range(8)],
            },
        ),
    ),
    "qwen3moe": (
        "qwen3moe",
        Qwen3MoeConfig(
            **SIZES, head_dim=32, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=40, norm_topk_prob=True
        ),
    ),
    "gpt-oss": (
        "gpt-oss",
        GptOssConfig(
            **{**SIZES, "num_hidden_layers": 3},
            head_dim=24,
            sliding_window=16,
            num_local_experts=6,
            num_experts_per_tok=3,
            rope_parameters={**YARN, "truncate": False, "rope_theta": 1.5e5},
        ),
    ),
    "gpt-oss-unscaled": (
        "gpt-oss",
        GptOssConfig(
            **SIZES,
            head_dim=24,
            sliding_window=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
    ),
    "olmo2": ("olmo2", Olmo2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 5e5})),
    "olmo3": (
        "olmo2",
        Olmo3Config(
            **{**SIZES, "num_hidden_layers": 5},
            sliding_window=16,
            layer_types=[SLIDING, FULL, SLIDING, SLIDING, FULL],
            rope_parameters={
                SLIDING: {"rope_type": "default", "rope_theta": 5e5},
                FULL: {**YARN, "rope_theta": 5e5},
            },
        ),
    ),
    "granite": (
        "granite",
        GraniteConfig(
            **SIZES,
            attention_multiplier=0.3,
            embedding_multiplier=6.0,
            residual_multiplier=0.22,
            logits_scaling=4.0,
            tie_word_embeddings=True,
        ),
    ),
    "granite-biases": ("granite", GraniteConfig(**SIZES, attention_bias=True, mlp_bias=True, logits_scaling=8.0)),
    "smollm3": (
        "smollm3",
        SmolLM3Config(**{**SIZES, "num_hidden_layers": 5}, rope_parameters={"rope_type": "default", "rope_theta": 5e6}),
    ),
    "gemma4": (
        "gemma4",
        Gemma4TextConfig(
            **{**SIZES, "num_hidden_layers": 6},
            head_dim=16,
            global_head_dim=32,
            sliding_window=16,
            layer_types=[SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
            num_kv_shared_layers=3,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=96,
            final_logit_softcapping=20.0,
            rope_parameters=GEMMA4_ROPE,
        ),
    ),
    "gemma4-experts": (
        "gemma4",
        Gemma4TextConfig(
            **{**SIZES, "num_hidden_layers": 3},
            head_dim=16,
            global_head_dim=32,
            sliding_window=16,
            layer_types=[SLIDING, SLIDING, FULL],
            num_kv_shared_layers=0,
            attention_k_eq_v=True,
            num_global_key_value_heads=1,
            hidden_size_per_layer_input=0,
            enable_moe_block=True,
            num_experts=6,
            top_k_experts=3,
            moe_intermediate_size=40,
            final_logit_softcapping=20.0,
            rope_parameters=GEMMA4_ROPE,
        ),
    ),
    "nemotron": (
        "nemotron",
        NemotronConfig(
            **{k: v for k, v in SIZES.items() if k != "rms_norm_eps"}, norm_eps=1e-5, partial_rotary_factor=0.5
        ),
    ),
    "qwen35": ("qwen35", Qwen3_5TextConfig(**SIZES, **DELTA, tie_word_embeddings=True)),
    "qwen35-equal-heads": ("qwen35", Qwen3_5TextConfig(**SIZES, **{**DELTA, "linear_num_value_heads": 2})),
    "qwen35moe": (
        "qwen35moe",
        Qwen3_5MoeTextConfig(
            **without("intermediate_size"),
            **DELTA,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=40,
            shared_expert_intermediate_size=24,
        ),
    ),
    "qwen3next": (
        "qwen3next",
        Qwen3NextConfig(
            **SIZES,
            **DELTA,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=40,
            shared_expert_intermediate_size=24,
            norm_topk_prob=True,
            mlp_only_layers=[],
        ),
    ),
    "granitehybrid": (
        "granitehybrid",
        GraniteMoeHybridConfig(
            **{**SIZES, "max_position_embeddings": 2**20},
            **GRANITE4,
            num_local_experts=0,
            num_experts_per_tok=0,
            tie_word_embeddings=True,
        ),
    ),
    "granitehybrid-experts": (
        "granitehybrid",
        GraniteMoeHybridConfig(
            **{**SIZES, "max_position_embeddings": 2**20}, **GRANITE4, num_local_experts=6, num_experts_per_tok=3
        ),
    ),
    "falcon-h1": ("falcon-h1", FalconH1Config(**SIZES, **FALCON_H1)),
    "falcon-h1-norm": (
        "falcon-h1",
        FalconH1Config(**SIZES, **FALCON_H1, mamba_rms_norm=True),
    ),
    "nemotron_h": (
        "nemotron_h",
        NemotronHConfig(
            **{**without("num_hidden_layers", "rms_norm_eps"), "max_position_embeddings": 2**20},
            **NEMOTRON_H,
            layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
        ),
    ),
    "nemotron_h_moe": (
        "nemotron_h_moe",
        NemotronHConfig(
            **{**without("num_hidden_layers", "rms_norm_eps", "intermediate_size"), "max_position_embeddings": 2**20},
            **NEMOTRON_H,
            layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
            n_routed_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            moe_shared_expert_intermediate_size=40,
            routed_scaling_factor=2.5,
            n_group=2,
            topk_group=1,
        ),
    ),
    "gemma3n": (
        "gemma3n",
        Gemma3nTextConfig(
            **{**SIZES, "num_hidden_layers": 4},
            head_dim=16,
            sliding_window=16,
            layer_types=[SLIDING, FULL, SLIDING, FULL],
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=96,
            laurel_rank=8,
            activation_sparsity_pattern=[0.95, 0.8, 0.0, 0.0],
        ),
    ),
}
