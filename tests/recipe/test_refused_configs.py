"""A config.json that is not understood is refused by the names of its fields, all at once."""

import math
from typing import Any

import pytest
from read_configs import NOT_UNDERSTOOD, SIZES, needs, problems

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing import family_names
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.importing.family import activations, own_code_models, refused_models

ACTIVATIONS = ", ".join(activations())


# One unknown value in a field that matters -> the problem, which names the field.
OTHER_WEIGHTS = "\n  use the checkpoint that they were quantised from, or a GGUF file of the model"


MUTATED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"use_qk_norm": True}, f"use_qk_norm: {NOT_UNDERSTOOD}"),
    (
        "llama",
        {"hidden_act": "quick"},
        f'hidden_act: "quick": {NOT_UNDERSTOOD}\n  available: {ACTIVATIONS}',
    ),
    (
        "llama",
        {"hidden_act": "gelu_pytorch"},
        f'hidden_act: "gelu_pytorch": {NOT_UNDERSTOOD}\n  did you mean `gelu_pytorch_tanh`?',
    ),
    ("llama", {"hidden_act": 3}, "hidden_act: 3 is not a word"),
    ("llama", {"attention_bias": "yes"}, 'attention_bias: "yes" is not true or false'),
    ("llama", {"attention_bias": 1}, "attention_bias: 1 is not true or false"),
    ("llama", {"mlp_bias": None}, "mlp_bias: null is not true or false"),
    ("llama", {"hidden_size": -3}, "hidden_size: -3 is not a whole number above 0"),
    ("llama", {"hidden_size": 32.0}, "hidden_size: 32.0 is not a whole number above 0"),
    ("llama", {"hidden_size": True}, "hidden_size: true is not a whole number above 0"),
    ("llama", {"vocab_size": 2**31}, "vocab_size: 2147483648 is more than 2147483647"),
    ("llama", {"vocab_size": 10**40}, "vocab_size: a number of 41 digits is more than 2147483647"),
    ("llama", {"num_hidden_layers": 5000}, "num_hidden_layers: 5000 layers; a recipe has 1024 at most"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers: 0 is not a whole number above 0"),
    ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps: nan is not a finite number above 0"),
    ("llama", {"rms_norm_eps": math.inf}, "rms_norm_eps: inf is not a finite number above 0"),
    ("llama", {"rms_norm_eps": -1e-6}, "rms_norm_eps: -1e-06 is not a finite number above 0"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: 4 heads cannot be divided among 3 KV heads"),
    ("llama", {"head_dim": 7}, "head_dim: 7 is odd, but a rotary rotates dimensions in pairs"),
    ("llama", {"rope_theta": 0}, "rope_theta: 0 is not a finite number above 0"),
    (
        "llama",
        {"rope_scaling": {"rope_type": "spiral"}},
        f'rope_scaling.rope_type: "spiral": {NOT_UNDERSTOOD}\n'
        "  available: default, linear, llama3, yarn, longrope, dynamic, proportional",
    ),
    (
        "llama",
        {"rope_scaling": {"type": "axial"}},
        'rope_scaling.rope_type: "axial": ' + needs("an axial rotary"),
    ),
    ("llama", {"rope_scaling": {"type": "yarn"}}, 'rope_scaling.factor: missing, rope_type "yarn" needs it'),
    (
        "llama",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 1, "beta_slow": 2}},
        "rope_parameters: rotary.scaling.beta_slow: 2 is not below beta_fast 1: between them lies the ramp",
    ),
    (
        "llama",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0] * 4}},
        "rope_parameters: rotary.scaling.short_factor: 2 factors for the 4 pairs that turn",
    ),
    (
        "llama",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}},
        'rope_scaling.long_factor: missing, rope_type "longrope" needs it',
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}},
        "rope_parameters.sliding_attention.truncate: false: transformers does not read it where layers have parameters "
        "of their own",
    ),
    ("llama", {"rope_scaling": {"type": "linear"}}, 'rope_scaling.factor: missing, rope_type "linear" needs it'),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": "4"}},
        'rope_scaling.factor: "4" is not a finite number above 0',
    ),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 4.0, "attention_factor": 1.1}},
        f"rope_scaling.attention_factor: {NOT_UNDERSTOOD}",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor: 0.5: this family rotates whole heads",
    ),
    (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        f"rope_parameters.full_attention: {NOT_UNDERSTOOD}",
    ),
    ("llama", {"rope_parameters": [1]}, "rope_parameters: a list is not a mapping"),
    (
        "llama",
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor: 0.5: " + needs("heads that turn in part in this family"),
    ),
    ("llama", {"sliding_window": 4096}, "sliding_window: 4096: " + needs("layers that slide in this family")),
    ("llama", {"original_max_position_embeddings": 0}, f"original_max_position_embeddings: {NOT_UNDERSTOOD}"),
    (
        "llama",
        {"layer_types": ["full_attention", "sliding_attention"] * 2},
        "layer_types: a list: " + needs("layers of several types in this family"),
    ),
    ("llama", {"rope_interleaved": True}, "rope_interleaved: true: " + needs("an interleaved rotary in this family")),
    (
        "llama",
        {"quantization_config": "4 bits"},
        f'quantization_config: "4 bits": weights that are packed so are not read{OTHER_WEIGHTS}',
    ),
    ("llama", {"compression_config": {"format": "pack-quantized"}}, f"compression_config: {NOT_UNDERSTOOD}"),
    (
        "llama",
        {"quantization_config": {"quant_method": "aqlm", "bits": 2}},
        f'quantization_config.quant_method: "aqlm": weights that are packed so are not read{OTHER_WEIGHTS}',
    ),
    ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder: true: " + needs("an encoder")),
    (
        "llama",
        {"architectures": ["LlamaForSequenceClassification"]},
        "architectures: LlamaForSequenceClassification does not predict a next token",
    ),
    ("granite", {"residual_multiplier": 0.0}, "residual_multiplier: 0.0 is not a finite number above 0"),
    ("granite", {"logits_scaling": "8"}, 'logits_scaling: "8" is not a finite number above 0'),
    ("qwen2", {"layer_types": ["full_attention"] * 3}, "layer_types: 3 entries, and num_hidden_layers is 4"),
    ("qwen2", {"layer_types": ["full_attention"] * 150_000}, "layer_types: 150000 entries, and num_hidden_layers is 4"),
    ("llama", {"layer_types": ["full_attention"] * 5}, "layer_types: 5 entries, and num_hidden_layers is 4"),
    ("llama", {"layer_types": []}, "layer_types: 0 entries, and num_hidden_layers is 4"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 0, 1]}, "no_rope_layers: 5 entries, and num_hidden_layers is 4"),
    ("gpt_oss", {"layer_types": ["full_attention"] * 6}, "layer_types: 6 entries, and num_hidden_layers is 4"),
    ("llama", {"num_key_value_heads": [2] * 4}, "num_key_value_heads: a list is not a whole number above 0"),
    ("mistral", {"sliding_window": [7] * 4}, "sliding_window: a list is not a whole number above 0"),
    (
        "qwen2",
        {"layer_types": ["full_attention", "linear_attention"] * 2},
        f'layer_types.1: "linear_attention": {NOT_UNDERSTOOD}',
    ),
    ("qwen2", {"attention_bias": "qkvo"}, f"attention_bias: {NOT_UNDERSTOOD}"),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": None, "layer_types": ["sliding_attention"] * 4},
        "sliding_window: null, and layers of kind sliding need it",
    ),
    (
        "gemma2",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention: true: " + needs("attention to later positions"),
    ),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}, f"rope_parameters.rope_theta: {NOT_UNDERSTOOD}"),
    ("gemma4_text", {"per_layer_config": {"9": {"head_dim": 4}}}, "per_layer_config.9: not the fields of a layer"),
    ("gemma4_text", {"per_layer_config": {"0": {"vocab_size": 4}}}, f"per_layer_config.0.vocab_size: {NOT_UNDERSTOOD}"),
    (
        "gemma4_text",
        {"per_layer_config": {"0": {"head_dim": 8}}},
        "per_layer_config: layers 0 and 1 differ in it and are alike otherwise",
    ),
    (
        "gemma4_text",
        {"num_kv_shared_layers": 1},
        "num_kv_shared_layers: 1: no layer is left whose cache those of kind full_shared could read",
    ),
    ("stablelm", {"use_parallel_residual": 1}, "use_parallel_residual: 1 is not true or false"),
    ("olmo", {"clip_qkv": -8.0}, "clip_qkv: -8.0 is not a finite number above 0"),
    (
        "gpt_neox",
        {"hidden_act": "gelu_10"},
        f'hidden_act: "gelu_10": {NOT_UNDERSTOOD}\n  did you mean `gelu`?',
    ),
    ("gpt_neox", {"rotary_dim": 8}, f"rotary_dim: {NOT_UNDERSTOOD}"),
    ("phi", {"qk_layernorm": "rms"}, 'qk_layernorm: "rms" is not true or false'),
    ("cohere2", {"use_qk_norm": True}, f"use_qk_norm: {NOT_UNDERSTOOD}"),
    (
        "exaone4",
        {"sliding_window_pattern": "LLLG"},
        "sliding_window_pattern: 'LLLG': only supported in a config that lists its layers",
    ),
    (
        "exaone4",
        {"sliding_window_pattern": None},
        "sliding_window_pattern: 0: only supported in a config that lists its layers",
    ),
    ("gemma4_text", {"rope_theta": 500.0}, f"rope_theta: {NOT_UNDERSTOOD}"),  # it turned sliding layers
    (
        "bloom",
        {"n_head": 4, "num_attention_heads": 2},
        "num_attention_heads: another name for n_head, but the two differ",
    ),
    ("bloom", {"n_embed": 48, "hidden_size": 32}, "n_embed: another name for hidden_size, but the two differ"),
    (
        "mixtral",
        {"num_experts": 4, "num_local_experts": 8},
        "num_experts: another name for num_local_experts, but the two differ",
    ),
    (
        "hunyuan_v1_dense",
        {"use_cla": True, "cla_share_factor": 2},
        "use_cla: true: " + needs("keys and values that layers of one kind share"),
    ),
    ("olmo3", {"layer_types": ["conv"] * 4}, f'layer_types.0: "conv": {NOT_UNDERSTOOD}'),
    (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx: true: " + needs("a scale of each layer's own"),
    ),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention: true: " + needs("attention to an encoder")),
    ("gpt2", {"n_embd": 0}, "n_embd: 0 is not a whole number above 0"),
    (
        "opt",
        {"activation_function": "tanh"},
        f'activation_function: "tanh": {NOT_UNDERSTOOD}\n  available: {ACTIVATIONS}',
    ),
    (
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm: true: " + needs("a residual taken behind the norm"),
    ),
    (
        "mpt",
        {"attn_config": {"qk_ln": True}},
        "attn_config.qk_ln: true: " + needs("q and k norms, which transformers' MPT does not have"),
    ),
    (
        "mpt",
        {"attn_config": {"alibi_bias_max": 16}},
        "attn_config.alibi_bias_max: 16: " + needs("other slopes, which transformers' MPT does not have"),
    ),
    ("mpt", {"attn_config": {"num_heads": 1}}, f"attn_config.num_heads: {NOT_UNDERSTOOD}"),
    (
        "falcon",
        {"new_decoder_architecture": True, "parallel_attn": False},
        "new_decoder_architecture: new_decoder_architecture true, parallel_attn false, num_ln_in_parallel_attn null, "
        f"multi_query true: {NOT_UNDERSTOOD}",
    ),
    (
        "hunyuan_v1_dense",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        'rope_parameters.alpha: missing, rope_type "dynamic" needs it',
    ),
    (
        "ministral3",
        {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
        f"rope_parameters.llama_4_scaling_beta: {NOT_UNDERSTOOD}",
    ),
    (
        "bloom",
        {"rope_parameters": {"rope_theta": 1.0}},
        "rope_parameters: a mapping: " + needs("a rotary in this family"),
    ),
    ("iquestcoder", {"clip_qkv": 8.0}, "clip_qkv: 8.0: " + needs("q, k and v cut off at a value")),
    ("glm", {"partial_rotary_factor": 1.5}, "rope_parameters: rotary.factor: 1.5 is not in (0, 1]"),
]


@pytest.mark.parametrize(("model_type", "fields", "problem"), MUTATED)
def test_a_mutated_config_is_refused_by_the_name_of_its_field(
    model_type: str, fields: dict[str, Any], problem: str
) -> None:
    assert problems(model_type, **fields) == [f"config.json: {problem}"]


def test_every_problem_is_told_at_once() -> None:
    assert problems("llama", hidden_size=-1, kv_lora_rank=8, hidden_act="tanh") == [
        "config.json: hidden_size: -1 is not a whole number above 0",
        f"config.json: kv_lora_rank: {NOT_UNDERSTOOD}",
        f'config.json: hidden_act: "tanh": {NOT_UNDERSTOOD}\n  available: {ACTIVATIONS}',
    ]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {},
            f"model_type: missing, so the family is unknown\n  name it with `--as FAMILY`: {', '.join(family_names())}",
        ),
        ({"model_type": 7}, "model_type: 7 is not a word"),
        (
            {"model_type": "bert"},
            "model_type: bert: an encoder: it has no next token, and a recipe describes a decoder",
        ),
        ({"model_type": "siglip"}, "model_type: siglip: a vision model: a recipe describes a decoder of text"),
        ({"model_type": "t5"}, "model_type: t5: an encoder and a decoder: a recipe describes a decoder alone"),
        (
            {"model_type": "rwkv"},
            "model_type: rwkv: " + needs("sums of exponentials that are kept with their running maximum"),
        ),
        (
            {"model_type": "my_llama", **SIZES, "rms_norm_eps": 1e-5},
            "model_type: my_llama: unknown, but every field is one of Llama's; config.json does not say whether its "
            "weights are\n"
            "  if it is a Llama by another name, add `--as llama`",
        ),
        (
            {"model_type": "mystery", **SIZES, "warp": 9, "auto_map": {"AutoConfig": "c.C"}},
            "model_type: mystery: transformers has no such model; its code ships with the checkpoint and is never run; "
            "llama has no warp",
        ),
        (
            {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"], **SIZES, "kv_lora_rank": 16},
            "model_type: kimi_k2: unknown, but architectures says DeepseekV3ForCausalLM\n"
            "  to read it as that family's, add `--as deepseek_v3`",
        ),
        (
            {"model_type": "phi-msft", "architectures": ["PhiForCausalLM"], "n_embd": 32},
            "model_type: phi-msft: transformers has no such model; phi has no n_embd",
        ),
        (
            {"model_type": "step3p7"},
            "model_type: step3p7: no family file reads its config.json yet; CONTRIBUTING.md explains how to write one",
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "rwkv"}},
            'text_config.model_type: "rwkv": ' + needs("sums of exponentials that are kept with their running maximum"),
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "llava"}},
            'text_config.model_type: "llava" is not llama nor another family',
        ),
        (
            {"model_type": "mystery", **SIZES, "warp": 9, "weft": 2},
            "model_type: mystery: transformers has no such model; llama has no warp, weft",
        ),
        ({"model_type": "gemma3"}, "text_config: missing"),
        ({"model_type": "gemma3", "text_config": [1]}, "text_config: a list is not a mapping"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "llama"}},
            'text_config.model_type: "llama" is not gemma3_text',
        ),
        (
            {"model_type": "gemma4_assistant", "text_config": {}},
            "model_type: gemma4_assistant is a draft, which reads another model's caches\n"
            "  add it to that model's recipe, under `draft:`",
        ),
    ],
)
def test_a_config_of_no_family_says_why(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        recipe_from_config(config, "small")
    assert list(caught.value.problems) == [f"config.json: {problem}"]


def test_no_model_is_both_read_and_refused() -> None:
    assert refused_models().keys() & set(family_names()) == set()
    assert own_code_models().keys() & {*family_names(), *refused_models()} == set()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"model_type": "internlm2"},
            "transformers has no such model: its q, k and v lie in one tensor, dealt out by KV",
        ),
        (
            {"model_type": "baichuan", "_from_model_config": True},
            "transformers has no such model: its q, k and v lie in",
        ),
        ({"model_type": "orion"}, "transformers has no such model: its norms are LayerNorms with biases"),
    ],
)
def test_a_model_whose_fields_would_fit_is_refused_with_what_is_true_of_it(fields: dict[str, Any], reason: str) -> None:
    """internlm2 used to be offered as a Llama by another name."""
    with pytest.raises(CheckpointError) as refused:
        recipe_from_config({**SIZES, "architectures": ["SomeForCausalLM"], **fields}, "small")
    (problem,) = refused.value.problems
    assert problem.startswith(f"config.json: model_type: {fields['model_type']}: {reason}")
    assert "--as" not in problem
