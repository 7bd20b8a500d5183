"""config.json is rebuilt from a GGUF file's metadata, and what cannot be is refused by key."""

import json
from math import log
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_configs import CONFIGS
from gguf_files import random_model, write_gguf
from transformers import AutoConfig, LlamaConfig

from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.architecture import architectures, load_table
from coreai_recipes.checkpoint.gguf.rope import llama3_factors
from coreai_recipes.errors import CheckpointError

LLAMA = CONFIGS["llama"][1]
# What a GGUF file does not say, or says in other words.
UNSTATED = {
    "initializer_range",
    "dtype",
    "attention_dropout",
    "use_cache",
    "resid_pdrop",
    "embd_pdrop",
    "architectures",
}


def open_case(tmp_path: Path, case: str = "llama", **options: Any) -> GGUFCheckpoint:
    architecture, config = CONFIGS[case]
    state = random_model(config).state_dict()
    return GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", architecture, config, state, **options))


def refusal(tmp_path: Path, case: str = "llama", **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_case(tmp_path, case, **options)
    return str(caught.value)


@pytest.mark.parametrize("case", CONFIGS)
def test_the_config_means_what_the_model_was_converted_from(case: str, tmp_path: Path):
    config = CONFIGS[case][1]
    ours, theirs = AutoConfig.for_model(**open_case(tmp_path, case).config).to_dict(), config.to_dict()
    theirs["model_type"] = {"mistral": "llama"}.get(config.model_type, config.model_type)  # without a window it is one
    if not getattr(config, "use_sliding_window", True):
        theirs.pop("sliding_window")  # Qwen's config states a window that it does not use
        ours.pop("sliding_window")
    assert {key: ours.get(key) for key in theirs if key not in UNSTATED} == {
        key: value for key, value in theirs.items() if key not in UNSTATED
    }


def test_a_key_that_is_not_understood_is_refused_and_all_of_them_at_once(tmp_path: Path):
    extra = {"llama.expert_count": 8, "llama.attention.scale": 0.5, "llama.embedding_scale": 12.0}
    problems = refusal(tmp_path, extra=extra).splitlines()
    path = tmp_path / "model.gguf"
    assert problems == [
        f"{path}: llama.expert_count is 8, which is not supported",
        f"{path}: llama.attention.scale is unknown, so the model cannot be rebuilt faithfully",
        f"{path}: llama.embedding_scale is unknown, so the model cannot be rebuilt faithfully",
    ]


def test_a_soft_cap_is_understood_where_the_architecture_has_one(tmp_path: Path):
    assert open_case(tmp_path, "gemma2").config["attn_logit_softcapping"] == 50.0
    refused = refusal(tmp_path, "qwen2", extra={"qwen2.attn_logit_softcapping": 50.0})
    assert "qwen2.attn_logit_softcapping is unknown" in refused


@pytest.mark.parametrize("key", ["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"])
def test_keys_without_influence_are_ignored(key: str, tmp_path: Path):
    assert key in load_table("shared")["ignored"]
    extra = {"llama.tensor_data_layout": "Meta AI original pth", "llama.rope.scaling.finetuned": False}
    assert open_case(tmp_path, extra=extra).config["vocab_size"] == 96


def test_harmless_values_are_taken(tmp_path: Path):
    extra = {f"llama.{key}": value for key, value in load_table("shared")["harmless"].items()}
    assert open_case(tmp_path, extra=extra).config["model_type"] == "llama"


def test_an_unknown_architecture_is_told_the_known_ones(tmp_path: Path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    known = ", ".join(sorted(architectures()))
    with pytest.raises(CheckpointError) as caught:
        GGUFCheckpoint(path)
    assert str(caught.value) == f"{path}: general.architecture is 'rwkv7', which is not supported; known are {known}"


def test_an_adapter_is_not_taken_for_a_model(tmp_path: Path):
    assert "general.type is 'adapter': the file does not hold a whole model" in refusal(
        tmp_path, extra={"general.type": "adapter"}
    )


@pytest.mark.parametrize(
    "key",
    ["context_length", "embedding_length", "block_count", "attention.head_count", "attention.layer_norm_rms_epsilon"],
)
def test_a_size_that_is_missing_is_named(key: str, tmp_path: Path):
    assert refusal(tmp_path, without=[f"llama.{key}"]).endswith(f"llama.{key} is missing")


def test_what_a_file_leaves_out_follows_from_the_rest(tmp_path: Path):
    left_out = ["attention.key_length", "attention.value_length", "rope.freq_base", "rope.dimension_count"]
    config = open_case(tmp_path, "llama-biases", without=[f"llama.{key}" for key in left_out]).config
    assert (config["head_dim"], config["rope_theta"]) == (16, 10000.0)


def test_one_value_per_layer_is_taken_when_all_are_equal(tmp_path: Path):
    assert open_case(tmp_path, extra={"llama.feed_forward_length": [96, 96]}).config["intermediate_size"] == 96
    refused = refusal(tmp_path, extra={"llama.feed_forward_length": [96, 48]})
    assert "llama.feed_forward_length differs from layer to layer, which is not supported" in refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope.scaling.type", "longrope", "rope.scaling.type is 'longrope'; known for llama are none, linear and yarn"),
        ("rope.scaling.type", 3, "rope.scaling.type is 3, not a string"),
        ("rope.dimension_count", 12, "rope.dimension_count is 12, but head_dim is 24"),
        ("attention.value_length", 16, "attention.value_length is not attention.key_length, 24"),
        ("attention.head_count_kv", 3, "attention.head_count_kv is 3, which does not divide the 4 attention heads"),
        ("attention.causal", False, "attention.causal is False, which is not supported"),
        ("rope.freq_base", -1.0, "rope.freq_base is -1.0"),
        ("block_count", True, "block_count is True, not a whole number"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_key(key: str, value: Any, message: str, tmp_path: Path):
    assert message in refusal(tmp_path, extra={f"llama.{key}": value})


def test_a_tokenizer_with_more_tokens_than_the_table_has_rows_is_refused(tmp_path: Path):
    extra = {"tokenizer.ggml.tokens": [str(i) for i in range(97)]}
    assert "tokenizer.ggml.tokens has 97 tokens, token_embd.weight 96 rows" in refusal(tmp_path, extra=extra)


def test_yarn_is_rebuilt(tmp_path: Path):
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 16.0}
    extra = {f"qwen2.rope.scaling.{key}": value for key, value in scaling.items()}
    assert open_case(tmp_path, "qwen2", extra=extra).config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
    }


YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}


def attention_factor_of(config: dict[str, Any]) -> float:
    """What transformers multiplies cos and sin by."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rebuilt = AutoConfig.for_model(**config)
    return float(ROPE_INIT_FUNCTIONS[rebuilt.rope_parameters["rope_type"]](rebuilt, "cpu")[1])


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("key", ["yarn_attn_factor", "yarn_ext_factor"])
def test_what_no_loader_reads_does_not_change_yarn(case: str, key: str, tmp_path: Path):
    """DeepSeek-R1-0528-Qwen3-8B's 0.878 used to be taken for transformers' attention_factor, which is 1.139."""
    extra = {f"{case}.{name}": value for name, value in {**YARN, f"rope.scaling.{key}": 0.8782488562869419}.items()}
    assert attention_factor_of(open_case(tmp_path, case, extra=extra).config) == pytest.approx(0.1 * log(4) + 1)


def test_attn_factor_stretches_what_yarn_turns(tmp_path: Path):
    extra = {f"qwen3.{key}": value for key, value in {**YARN, "rope.scaling.attn_factor": 0.5}.items()}
    factor = attention_factor_of(open_case(tmp_path, "qwen3", extra=extra).config)
    assert factor == pytest.approx(0.5 * (0.1 * log(4) + 1))


def test_attn_factor_is_refused_where_transformers_has_no_word_for_it(tmp_path: Path):
    """It used to be dropped without a word but for phi3."""
    alone = refusal(tmp_path, extra={"llama.rope.scaling.attn_factor": 1.19})
    assert alone.endswith("llama.rope.scaling.attn_factor is 1.19, which only a scaled rotary can have")
    extra = {"llama.rope.scaling.attn_factor": 1.19, "llama.rope.scaling.factor": 4.0}
    assert refusal(tmp_path, extra=extra).endswith("is 1.19, which linear scaling cannot express")
    assert "rope_scaling" not in open_case(tmp_path, extra={"llama.rope.scaling.attn_factor": 1.0}).config


def test_longrope_takes_attn_factor_as_it_stands(tmp_path: Path):
    config = open_case(tmp_path, "phi3-longrope", extra={"phi3.rope.scaling.attn_factor": 1.25}).config
    assert config["rope_scaling"]["attention_factor"] == 1.25
    refused = refusal(tmp_path, "phi3-longrope", extra={"phi3.rope.scaling.factor": 2.0})
    assert refused.endswith(
        "phi3.rope.scaling.factor is 2.0, but there are rope_factors_long.weight and rope_factors_short.weight"
    )


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma"])
def test_a_factor_without_a_type_is_linear(case: str, key: str, tmp_path: Path):
    """It used to be dropped: llama.cpp's rope.scaling.type is linear where a file has none."""
    config = open_case(tmp_path, case, extra={f"{case}.{key}": 4.0}).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert "rope_scaling" not in open_case(tmp_path, case, extra={f"{case}.{key}": 0.0}).config
    none = {f"{case}.{key}": 4.0, f"{case}.rope.scaling.type": "none"}
    assert "rope_scaling" not in open_case(tmp_path, case, extra=none).config


def test_yarns_original_context_is_the_context_where_the_file_is_silent(tmp_path: Path):
    extra = {"qwen3.rope.scaling.type": "yarn", "qwen3.rope.scaling.factor": 4.0}
    config = open_case(tmp_path, "qwen3", extra=extra).config
    assert config["rope_scaling"]["original_max_position_embeddings"] == 256


def test_a_sliding_window_of_zero_is_none(tmp_path: Path):
    """`llama` used to get sliding_window: null, a field that the family does not know."""
    from coreai_recipes.planning.authoring import new_recipe

    config = open_case(tmp_path, extra={"llama.attention.sliding_window": 0}).config
    assert config["model_type"] == "llama"
    assert "sliding_window" not in config
    assert new_recipe(tmp_path / "model.gguf").recipe.model.kinds["full"].attention.kind == "full"


@pytest.mark.parametrize("window", [32, 4096])
def test_a_window_that_no_loader_reads_is_refused(tmp_path: Path, window: int):
    """It used to make a Mistral of a Llama whose layers slide; llama.cpp attends in full, whatever the key says."""
    with pytest.raises(CheckpointError) as refused:
        open_case(tmp_path, extra={"llama.attention.sliding_window": window})
    assert refused.value.problems == (
        f"{tmp_path / 'model.gguf'}: llama.attention.sliding_window is {window}: llama.cpp does not read it in this "
        "architecture, so its meaning is unknown",
    )


def test_a_theta_of_sliding_layers_that_the_graph_does_not_look_at_is_refused(tmp_path: Path):
    """It used to turn OLMo 3's sliding layers; llama.cpp turns all by rope.freq_base."""
    assert open_case(tmp_path, "olmo3", extra={"olmo2.rope.freq_base_swa": 500000.0}).config["layer_types"]
    with pytest.raises(
        CheckpointError, match=r"olmo2\.rope\.freq_base_swa is 777\.0, and llama\.cpp rotates sliding layers"
    ):
        open_case(tmp_path, "olmo3", extra={"olmo2.rope.freq_base_swa": 777.0})


def test_a_padding_id_out_of_range_is_none(tmp_path: Path):
    """llama.cpp takes its default, none; the file used to be refused."""
    checkpoint = open_case(tmp_path, extra={"tokenizer.ggml.padding_token_id": 2**32 - 1})
    assert checkpoint.config["pad_token_id"] is None
    checkpoint.write_tokenizer(tmp_path)
    assert "pad_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_the_scaling_of_gemma3_is_that_of_its_full_layers(tmp_path: Path):
    extra = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    rope = AutoConfig.for_model(**open_case(tmp_path, "gemma3", extra=extra).config).rope_parameters
    assert rope["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize("scaling", load_table("shared")["llama3_scalings"])
def test_llama3_factors_are_what_transformers_divides_by(scaling: dict[str, Any]):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(head_dim=64, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **scaling})
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    ours = 5e5 ** (-np.arange(0, 64, 2) / 64) / llama3_factors(scaling, 5e5, 64)
    np.testing.assert_allclose(ours, theirs.double().numpy(), rtol=1e-5)


def test_rotary_factors_of_no_published_config_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "gguf_files.rope_tensors", lambda config: {"rope_freqs.weight": np.linspace(1, 3, 12, dtype="f4")}
    )
    assert "rope_freqs.weight holds rotary factors that match no published llama3" in refusal(tmp_path)


def test_rotary_factors_of_another_width_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gguf_files.rope_tensors", lambda config: {"rope_freqs.weight": np.ones(7, np.float32)})
    assert "rope_freqs.weight has 7 factors for a head_dim of 24" in refusal(tmp_path)


def test_rotary_factors_of_one_are_no_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gguf_files.rope_tensors", lambda config: {"rope_freqs.weight": np.ones(12, np.float32)})
    assert "rope_scaling" not in open_case(tmp_path).config


def test_the_numbers_are_the_shortest_decimals(tmp_path: Path):
    """rms_norm_eps used to come out as 9.999999747378752e-06, the float32 in the file."""
    assert open_case(tmp_path).config["rms_norm_eps"] == 1e-5
