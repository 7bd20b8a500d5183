"""A small config of each family in which every field that its rules read differs from transformers' default."""

from pathlib import Path
from typing import Any

from family_values import LAYERS, SIZES, TOGETHER, TYPES, UNUSUAL

from coreai_recipes.recipe.importing.family import Family, family_names, load_family
from coreai_recipes.recipe.importing.rules import FieldRule
from coreai_recipes.recipe.importing.spelling import gather

YARN = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 24.0,
    "beta_slow": 1.5,
    "truncate": False,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
NTK = {"rope_type": "dynamic", "rope_theta": 5000.0, "alpha": 30.0, "factor": 1.0}
TEMPERATURE = {**YARN, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.4}
LONGROPE = {
    "rope_theta": 5000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.0, 2.5, 9.0, 21.0],
}
# Further configs of a family, for what one config cannot be at once.
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3-yarn": ("deepseek_v3", {"rope_parameters": YARN, "attention_bias": True, "q_lora_rank": None}),
    "phimoe-unscaled": (
        "phimoe",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "router_jitter_noise": 0.01},
    ),
    "laguna-alike": ("laguna", {"gating": "per-head"}),
    "llama4-every-second": (
        "llama4_text",
        {
            "layer_types": None,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
            "attn_temperature_tuning": False,
            "use_qk_norm": False,
        },
    ),
    "falcon_h1-norm-before-gate": ("falcon_h1", {"mamba_rms_norm": True, "mamba_d_ssm": None, "mamba_expand": 3}),
    "granitemoehybrid-rotary": ("granitemoehybrid", {"position_embedding_type": "rope"}),
    "granitemoehybrid-dense": ("granitemoehybrid", {"num_local_experts": 0}),
    "granitemoehybrid-no-mamba": (
        "granitemoehybrid",
        # transformers wants its Mamba heads to fit, though no layer has one
        {
            "num_local_experts": 0,
            "layer_types": ["full_attention"] * LAYERS,
            "position_embedding_type": "rope",
            "hidden_size": 64,
            "mamba_n_heads": 128,
        },
    ),
    # as the released files say it: layers are counted from 1
    "kimi_linear-nested": (
        "kimi_linear",
        {
            "layer_types": None,
            "mlp_layer_types": None,
            "linear_attn_config": {
                "full_attn_layers": [2, 5],
                "kda_layers": [1, 3, 4],
                "head_dim": 12,
                "num_heads": 3,
                "short_conv_kernel_size": 3,
            },
        },
    ),
    "minicpm3-no-factors": ("minicpm3", {"scale_depth": None, "dim_model_base": None, "v_head_dim": 14}),
    "lfm2-adjusted": (
        "lfm2",
        {"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 8, "full_attn_idxs": [1, 4], "layer_types": None},
    ),
    "afmoe-every-third": ("afmoe", {"global_attn_every_n_layers": 3}),
    "ernie4_5_moe-in-the-middle": ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_layer_end_index": 3}),
    "exaone_moe-two-dense": ("exaone_moe", {"first_k_dense_replace": 2}),
    "flint-dense-ends": ("flint", {"mlp_only_layers": [0, 3]}),
    "lfm3-no-sandwich": ("lfm3", {"use_sandwich_norm": False, "use_attention_gate": False, "attention_bias": True}),
    "youtu-halves": ("youtu", {"rope_interleave": False, "rope_parameters": YARN}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2-from-a-layer-on": ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}),
    "qwen3-biased": ("qwen3", {"attention_bias": True}),
    "smollm3-every-second": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3-nope-slides": ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 7}),
    "seed_oss-no-bias": ("seed_oss", {"attention_bias": False}),
    "seed_oss-biases": ("seed_oss", {"attention_out_bias": True}),
    "llama-old-spelling": ("llama", {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "gpt_neox-old-spelling": ("gpt_neox", {"rotary_emb_base": 5000.0, "rotary_pct": 0.5}),
    "phi-normed": ("phi", {"qk_layernorm": True}),
    "cohere-normed": ("cohere", {"use_qk_norm": True}),
    "persimmon-not-normed": ("persimmon", {"qk_layernorm": False}),
    # as the 32B on the hub says it
    "exaone4-pattern-in-letters": ("exaone4", {"sliding_window_pattern": "LLLG", "layer_types": TYPES}),
    "exaone4-full": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * LAYERS}),
    "starcoder2-sliding": ("starcoder2", {"sliding_window": 7}),
    "gpt_bigcode-unscaled": ("gpt_bigcode", {"scale_attn_weights": False}),
    "gpt_bigcode-heads": ("gpt_bigcode", {"multi_query": False}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 36}),
    "opt-no-final-norm": ("opt", {"_remove_final_layer_norm": True}),
    "stablelm-12b": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}),
    "ministral3-window": ("ministral3", {"sliding_window": 7, "rope_parameters": TEMPERATURE}),
    "hunyuan-alpha": ("hunyuan_v1_dense", {"rope_parameters": NTK}),
    "falcon-7b": ("falcon", {}),
    "falcon-40b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3, "bias": True}),
    "falcon-11b": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1}),
    "falcon-rw": (
        "falcon",
        {
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "num_attention_heads": 12,
            "num_kv_heads": None,
        },
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 3.0}}),
    "phi3-longrope": (
        "phi3",
        {
            "head_dim": 8,
            "rope_parameters": {"rope_type": "longrope", **LONGROPE},
            "original_max_position_embeddings": 32,
        },
    ),
    "phi3-su": (
        "phi3",
        {
            "head_dim": 8,
            # transformers forgets to carry the config's own into parameters of this name
            "rope_scaling": {
                "type": "su",
                **LONGROPE,
                "attention_factor": 1.3,
                "original_max_position_embeddings": 256,
            },
            "original_max_position_embeddings": 256,
        },
    ),
    "gemma3-old-spelling": (
        "gemma3_text",
        {
            "rope_theta": 5000.0,
            "rope_local_base_freq": 700.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "sliding_window_pattern": 2,
        },
    ),
    "gemma3n-widths": (
        "gemma3n_text",
        {"intermediate_size": [88, 88, 60, 88, 60], "activation_sparsity_pattern": [0.5, 0.0, 0.9, 0.0, 0.0]},
    ),
    "gemma4-per-layer": ("gemma4_text", {"hidden_size_per_layer_input": 12, "num_kv_shared_layers": 0}),
    "gemma4-shared": (
        "gemma4_text",
        {"num_kv_shared_layers": 2, "layer_types": TYPES, "hidden_size_per_layer_input": 0, "num_key_value_heads": 3},
    ),
    "gemma4-keys-are-values": (
        "gemma4_text",
        {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 2,
            "layer_types": TYPES,
            "hidden_size_per_layer_input": 0,
        },
    ),
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.5}


def decoders() -> list[str]:
    """The families that are read by rules of their own, rather than as a part of a larger config, and compared with
    transformers' model of their own."""
    return [name for name in family_names() if load_family(name).part is None and load_family(name).reference is None]


def unusual_config(family: Family) -> dict[str, Any]:
    """Every field of `family` off its default, and a rotary off its default."""
    said = {name: rule for name, rule in family.fields.items() if rule.only != (rule.default,)}
    config = {name: unusual_value(name, rule) for name, rule in said.items() if name != family.per_layer}
    tokens = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    return gather({**config, **tokens, **_rope(family), **TOGETHER.get(family.name, {})}, family)


def plain_config(family: Family) -> dict[str, Any]:
    """Sizes alone: every other field is absent."""
    free = {name for name, rule in family.fields.items() if rule.only is None}
    sizes = {name: value for name, value in SIZES.items() if name in free}
    return gather({**sizes, "pad_token_id": None, **TOGETHER.get(family.name, {})}, family)


def all_configs() -> dict[str, dict[str, Any]]:
    """Every config by the name of its test, with its model_type."""
    found = {}
    for name in decoders():
        family = load_family(name)
        found[f"{name}-unusual"] = {"model_type": name, **unusual_config(family)}
        found[f"{name}-plain"] = {"model_type": name, **plain_config(family)}
    for name, (model_type, changes) in FURTHER.items():
        found[name] = {"model_type": model_type, **plain_config(load_family(model_type)), **changes}
    return found


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of single letters, beside a checkpoint that has none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {chr(32 + index): index for index in range(96)}
    tokenizer = Tokenizer(models.BPE(letters, [], unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=" ").save_pretrained(folder)


def unusual_value(name: str, rule: FieldRule) -> Any:
    if rule.only is not None:
        return rule.only[-1]
    if name in UNUSUAL:
        return UNUSUAL[name]
    if isinstance(rule.default, bool):
        return not rule.default
    if rule.values is not None:
        usual = rule.values[str(rule.default)]
        return next(word for word, ours in rule.values.items() if ours != usual)
    raise KeyError(f"{family_of(name)}: {name} needs an unusual value in UNUSUAL")


def family_of(field: str) -> str:
    return ", ".join(name for name in family_names() if field in load_family(name).fields)


def _rope(family: Family) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, slot in enumerate(family.rope.values()):
        kind = PROPORTIONAL if slot.default.get("rope_type") == "proportional" else (LLAMA3, LINEAR)[index % 2]
        if slot.default.get("rope_type") == "yarn":
            kind = TEMPERATURE if "llama_4_scaling_beta" in slot.default else YARN
        given = {**kind, "rope_theta": 12345.0 + index}
        if slot.partial is not None:
            given = {"rope_type": "default", "rope_theta": 12345.0, "partial_rotary_factor": 0.8}
        if slot.nested is None:
            return {"rope_parameters": given}
        found[slot.nested] = given
    return {"rope_parameters": found}


DRAFT_TARGET = {
    "model_type": "gemma4_text",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
DRAFT_TEXT = {
    **{key: value for key, value in DRAFT_TARGET.items() if key != "num_kv_shared_layers"},
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": 0,
}


def assistant(text: dict[str, Any] | None = None, **outer: Any) -> dict[str, Any]:
    """A draft of DRAFT_TARGET, with changes to its text part and around it."""
    return {
        "model_type": "gemma4_assistant",
        "backbone_hidden_size": 32,
        "text_config": {**DRAFT_TEXT, **(text or {})},
        **outer,
    }
