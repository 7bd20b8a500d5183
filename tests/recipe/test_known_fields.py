"""Fields that a family does not read: left out with a note where transformers cannot see them either, else refused."""

import json
from typing import Any

import pytest
import torch
from family_configs import decoders, plain_config
from known_fields import data_file, read_source

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.importing.checking import says_nothing
from coreai_recipes.recipe.importing.family import load_family, noted_fields
from coreai_recipes.recipe.importing.known import is_known, is_known_anywhere, is_rope_key

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def notes(model_type: str, chosen: str | None = None, **fields: Any) -> list[str]:
    return list(recipe_from_config({"model_type": model_type, **SIZES, **fields}, "small", chosen=chosen).notes)


def refused(model_type: str, chosen: str | None = None, **fields: Any) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        notes(model_type, chosen, **fields)
    return [problem.removeprefix("config.json: ").partition(": not understood")[0] for problem in caught.value.problems]


def test_the_data_file_is_what_the_installed_transformers_says() -> None:
    assert json.loads(data_file().read_text()) == read_source(), "run `make known`"


@pytest.mark.parametrize(
    ("model_type", "name", "is_known_there"),
    [
        ("phi3", "original_max_position_embeddings", True),  # a field of the config class
        ("mixtral", "num_experts", True),  # a key of attribute_map
        ("phi3", "su", True),  # a string of the config's module
        ("llama", "layer_types", True),  # of what takes any config
        ("llama", "per_layer_config", True),  # of what every config class inherits
        ("internlm3", "qkv_bias", True),  # its own attribute_map
        ("internlm3", "mlp_bias", True),  # its model is Llama's
        ("phi3", "attention_bias", False),
        ("qwen2", "use_mrope", False),
        ("gemma3_text", "mm_tokens_per_image", True),  # the module is the wrapper's too
    ],
)
def test_what_transformers_source_names_is_known(model_type: str, name: str, is_known_there: bool) -> None:
    assert is_known(model_type, name) is is_known_there


def test_a_rope_type_reads_what_its_function_does() -> None:
    assert is_rope_key("llama", "yarn", "mscale")
    assert not is_rope_key("llama", "linear", "mscale")
    assert not is_rope_key("llama", "yarn", "attn_factor")
    assert is_rope_key("ministral3", "yarn", "llama_4_scaling_beta")
    assert is_known_anywhere("mrope_section")


@pytest.mark.parametrize("value", [None, False, 0, 1, 0.0, 1.0, "", []])
def test_an_unknown_field_that_says_nothing_is_left_out_by_name(value: Any) -> None:
    (note,) = notes("qwen2", attention_bias=value)
    assert note.startswith("attention_bias: ")
    assert note.endswith("left out, transformers' qwen2 has no such field, and its value is empty")


@pytest.mark.parametrize("value", [2, -1, "yes", [0], {"a": 1}, 1.5])
def test_an_unknown_field_that_means_something_elsewhere_is_refused(value: Any) -> None:
    assert refused("qwen2", attention_bias=value) == ["attention_bias"]


def test_another_value_than_the_released_ones_is_refused() -> None:
    assert refused("nemotron", kv_channels=16) == ["kv_channels"]
    assert refused("stablelm", num_heads=4, norm_eps=1e-6) == ["num_heads", "norm_eps"]
    assert refused("persimmon", num_key_value_heads=2) == ["num_key_value_heads"]


def test_true_is_not_one() -> None:
    assert refused("llama", use_qk_norm=True) == ["use_qk_norm"]
    assert notes("llama", use_qk_norm=1) != []


def test_a_field_of_no_model_at_all_is_left_out_by_name() -> None:
    assert notes("llama", internal_version="7.2", _num_labels=5) == [
        'internal_version: "7.2": left out, no model in transformers has this field',
        "_num_labels: 5: left out, no model in transformers has this field",
    ]


def test_what_the_model_itself_knows_is_never_left_out() -> None:
    """`embed_tokens` is no field, but a name in Llama's modules."""
    assert refused("llama", embed_tokens=0, kv_sharing_modes=None) == ["embed_tokens", "kv_sharing_modes"]


def test_code_of_ones_own_may_read_what_transformers_does_not_know() -> None:
    assert refused("my_llama", "llama", attention_sharpness=2.0) == ["attention_sharpness"]
    assert notes("my_llama", "llama", attention_sharpness=None) != []


def test_rotary_parameters_that_the_rope_type_does_not_read_are_left_out_by_name() -> None:
    said = notes("qwen3", head_dim=8, rope_scaling={**YARN, "attn_factor": 0.878, "finetuned": True, "alpha": 0})
    assert said == [
        "rope_scaling.attn_factor: 0.878: left out, no model in transformers has this parameter",
        "rope_scaling.finetuned: true: left out, no model in transformers has this parameter",
        "rope_scaling.alpha: 0: left out, rope_type yarn does not read it, and its value is empty",
    ]


def test_rotary_parameters_of_another_rope_type_are_refused() -> None:
    assert refused("llama", rope_scaling={"type": "linear", "factor": 2.0, "beta_fast": 32}) == [
        "rope_scaling.beta_fast"
    ]
    assert refused("llama", rope_scaling={"rope_type": "default", "mrope_section": [1, 1, 2]}) == [
        "rope_scaling.mrope_section"
    ]
    assert notes("llama", rope_scaling={"rope_type": "default", "factor": 1.0}) != []


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {"sliding_window": None}),
        ("llama", {"layer_types": ["full_attention"] * 2}),
        ("llama", {"layer_types": None}),
        ("phi3", {"partial_rotary_factor": 1.0, "layer_types": ["full_attention"] * 2}),
        ("gpt_neox", {"per_layer_config": None}),
    ],
)
def test_what_transformers_reads_of_any_config_may_say_that_there_is_nothing(
    model_type: str, fields: dict[str, Any]
) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    plain = recipe_from_config({"model_type": model_type, **sizes}, "small")
    said = recipe_from_config({"model_type": model_type, **sizes, **fields}, "small")
    assert (said.recipe, said.notes) == (plain.recipe, ())


# the few fields that make a case: the file that has them, its family, the fields
RELEASED: list[tuple[str, str, dict[str, Any]]] = [
    ("phi-4", "phi3", {"attention_bias": False, "mlp_bias": False}),
    (
        "Phi-4-mini",
        "phi3",
        {"attention_bias": False, "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False},
    ),
    ("phi-1", "phi", {"attention_bias": False, "rotary_dim": 32}),
    (
        "Qwen3-Coder",
        "qwen3_moe",
        {"qkv_bias": False, "shared_expert_intermediate_size": 0, "use_qk_norm": True, "num_experts": 8},
    ),
    ("StarCoder2", "starcoder2", {"layer_norm_epsilon": 1e-05, "use_cache": True}),
    ("gpt2-medium", "gpt2", {"n_special": 0, "predict_special_tokens": True}),
    ("DeepSeek-R1-Distill-Qwen", "qwen2", {"use_mrope": False}),
    ("DeepSeek-R1-0528-Qwen3-8B", "qwen3", {"rope_scaling": {**YARN, "attn_factor": 0.8782488562869419}}),
    ("Yarn-Llama-2", "llama", {"rope_scaling": {**YARN, "finetuned": True}}),
    ("LLaMA 1", "llama", {"max_sequence_length": 2048}),
    ("ALLaM", "llama", {"internal_version": "0.1"}),
    ("Gemma 4", "gemma4_text", {"expert_intermediate_size": None}),
    ("MaxText's Qwen2.5", "qwen2", {"attention_bias": True}),
    ("Minitron-4B", "nemotron", {"kv_channels": 128, "norm_eps": 1e-05}),
    ("StableLM 3B", "stablelm", {"num_heads": 32, "norm_eps": 1e-05, "rope_pct": 0.25, "rotary_scaling_factor": 1.0}),
    ("Hy-MT2", "hunyuan_v1_dense", {"head_dim": 8, "pad_id": 127961, "org_vocab_size": 128167, "v_head_dim": None}),
]


@pytest.mark.parametrize(("model_type", "fields"), [case[1:] for case in RELEASED], ids=[case[0] for case in RELEASED])
def test_released_files_are_read_and_transformers_logits_are_bit_equal_without_what_is_left_out(
    model_type: str, fields: dict[str, Any]
) -> None:
    own = {"gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 96}}
    sizes = own.get(model_type, {**SIZES, "max_position_embeddings": 128})
    if model_type == "gemma4_text":
        sizes |= {"head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "sliding_window": 16}
    imported = recipe_from_config({"model_type": model_type, **sizes, **fields}, "small")
    left_out = {note.partition(":")[0].removeprefix("rope_scaling.") for note in imported.notes}
    assert left_out

    rest = {key: value for key, value in fields.items() if key not in left_out}
    if "rope_scaling" in rest:
        rest["rope_scaling"] = {key: value for key, value in rest["rope_scaling"].items() if key not in left_out}
    sizes |= {"pad_token_id": None}
    assert torch.equal(logits(model_type, **sizes, **fields), logits(model_type, **sizes, **rest))


def logits(model_type: str, **said: Any) -> torch.Tensor:
    """Of transformers' model of a config, the same weights each time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **said)).eval()
    with torch.inference_mode():
        return model(torch.arange(3, 80)[None]).logits  # type: ignore[no-any-return]


def noted() -> list[tuple[str, str, Any]]:
    return [
        (name, field, value)
        for name in decoders()
        for field, entry in noted_fields(name).items()
        for value in entry.only or ()
    ]


@pytest.mark.parametrize(("model_type", "field", "value"), noted())
def test_each_line_of_data_leaves_the_logits_bit_equal(model_type: str, field: str, value: Any) -> None:
    plain = plain_config(load_family(model_type))
    assert noted_fields(model_type)[field].seen
    (note,) = recipe_from_config({"model_type": model_type, **plain, field: value}, "small").notes
    assert note.startswith(f"{field}: ")

    assert torch.equal(logits(model_type, **plain), logits(model_type, **plain, **{field: value}))


def repeated() -> list[tuple[str, str, str]]:
    return [
        (name, field, entry.same)
        for name in decoders()
        for field, entry in noted_fields(name).items()
        if entry.same is not None
    ]


@pytest.mark.parametrize(("model_type", "field", "other"), repeated())
def test_a_field_that_says_again_what_another_does_leaves_the_logits_bit_equal(
    model_type: str, field: str, other: str
) -> None:
    family = load_family(model_type)
    plain = plain_config(family) | ({} if other in family.fields else {other: 0.5})
    said = plain.get(other, family.fields[other].default if other in family.fields else None)
    config = {"model_type": model_type, **plain, other: said}
    (note,) = recipe_from_config({**config, field: said}, "small").notes
    assert note.startswith(f"{field}: {said}: left out, {other} is read")
    for odd in ({**config, field: 3 * said}, {key: value for key, value in config.items() if key != other}):
        with pytest.raises(CheckpointError, match=rf"config\.json: {field}: "):
            recipe_from_config({field: 3 * said, **odd}, "small")
    assert torch.equal(logits(model_type, **plain), logits(model_type, **plain, **{field: said}))


def test_the_table_names_families_and_what_is_strange_to_them() -> None:
    for model_type, field, value in noted():
        assert not says_nothing(value)
        assert is_known_anywhere(field), f"{model_type}.{field}: no line of data is needed"
