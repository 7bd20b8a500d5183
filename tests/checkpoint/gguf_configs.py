"""Small configs of unusual sizes for GGUF files: each architecture, with what its table row is about."""

from gguf_more_configs import MORE_CONFIGS
from gguf_sizes import FULL, LLAMA3, SIZES, SLIDING, YARN
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

GEMMA4_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 2e4},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
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
    **MORE_CONFIGS,
}
