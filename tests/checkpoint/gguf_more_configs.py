"""Small configs of hybrid models, of mixtures and of others that came later."""

from gguf_sizes import FULL, LLAMA3, SIZES, SLIDING, YARN, without
from transformers import (
    ArceeConfig,
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    FalconH1Config,
    FalconMambaConfig,
    Gemma3nTextConfig,
    Glm4MoeConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    GraniteMoeSharedConfig,
    JambaConfig,
    Lfm2MoeConfig,
    Mamba2Config,
    MambaConfig,
    NemotronHConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3NextConfig,
    SeedOssConfig,
)

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


ALONE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "layer_norm_epsilon": 2e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GRANITE_SCALES = {
    "attention_multiplier": 0.3,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}
MORE_CONFIGS: dict[str, tuple[str, PreTrainedConfig]] = {
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
    "mamba": ("mamba", MambaConfig(**ALONE, state_size=12)),
    "falcon-mamba": ("mamba", FalconMambaConfig(**ALONE, state_size=12, tie_word_embeddings=False)),
    "mamba2": ("mamba2", Mamba2Config(**ALONE, num_heads=8, head_dim=16, n_groups=2, state_size=12)),
    "jamba": (
        "jamba",
        JambaConfig(
            **{**SIZES, "num_hidden_layers": 4},
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=3,
            expert_layer_offset=0,
            num_experts=6,
            num_experts_per_tok=3,
            mamba_d_state=12,
            use_mamba_kernels=False,
        ),
    ),
    "lfm2moe": (
        "lfm2moe",
        Lfm2MoeConfig(
            **without("rms_norm_eps"),
            norm_eps=2e-5,
            conv_L_cache=3,
            layer_types=["conv", FULL],
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            num_dense_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        ),
    ),
    "granitemoe": (
        "granitemoe",
        GraniteMoeConfig(**SIZES, **GRANITE_SCALES, num_local_experts=6, num_experts_per_tok=3),
    ),
    "granitemoeshared": (
        "granitemoe",
        GraniteMoeSharedConfig(
            **SIZES, **GRANITE_SCALES, num_local_experts=6, num_experts_per_tok=3, shared_intermediate_size=40
        ),
    ),
    "qwen2moe": (
        "qwen2moe",
        Qwen2MoeConfig(
            **SIZES,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=40,
            shared_expert_intermediate_size=24,
            mlp_only_layers=[],
        ),
    ),
    "glm4moe": (
        "glm4moe",
        Glm4MoeConfig(
            **SIZES,
            head_dim=24,
            attention_bias=True,
            use_qk_norm=True,
            n_routed_experts=6,
            num_experts_per_tok=3,
            n_shared_experts=2,
            moe_intermediate_size=24,
            first_k_dense_replace=1,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            n_group=2,
            topk_group=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        ),
    ),
    "olmoe": ("olmoe", OlmoeConfig(**SIZES, num_experts=6, num_experts_per_tok=3, clip_qkv=None)),
    "seed_oss": ("seed_oss", SeedOssConfig(**SIZES, head_dim=24, attention_bias=True, attention_out_bias=False)),
    "ernie4_5": ("ernie4_5", Ernie4_5Config(**SIZES, head_dim=24, tie_word_embeddings=True)),
    "command-r": ("command-r", CohereConfig(**without("rms_norm_eps"), layer_norm_eps=2e-5, logit_scale=0.25)),
    "command-r-norms": ("command-r", CohereConfig(**without("rms_norm_eps"), layer_norm_eps=2e-5, use_qk_norm=True)),
    "cohere2": (
        "cohere2",
        Cohere2Config(
            **{**without("rms_norm_eps"), "num_hidden_layers": 4},
            layer_norm_eps=2e-5,
            logit_scale=0.25,
            sliding_window=16,
        ),
    ),
    "exaone4": (
        "exaone4",
        Exaone4Config(
            **{**SIZES, "num_hidden_layers": 4},
            sliding_window=16,
            layer_types=[SLIDING, SLIDING, SLIDING, FULL],
            rope_parameters={"rope_theta": 1e6, **LLAMA3, "factor": 16.0},
        ),
    ),
    "exaone4-full": (
        "exaone4",
        Exaone4Config(
            **SIZES,
            sliding_window=None,
            layer_types=[FULL] * 2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        ),
    ),
    "qwen2vl": ("qwen2vl", Qwen2Config(**SIZES)),
    "qwen3vl": ("qwen3vl", Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True)),
    "arcee": ("arcee", ArceeConfig(**SIZES, head_dim=24, rope_parameters={**YARN, "rope_theta": 1e4})),
}
