"""Each metadata key is read, known to be without influence, or refused by name: for every architecture on its own."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_configs import CONFIGS, FULL, SLIDING
from gguf_files import random_model, write_gguf

from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.architecture import Architecture, architectures
from coreai_recipes.errors import CheckpointError

# One case of each architecture; that of OLMo 2 is OLMo 3, which has a window.
CASES = {architecture: case for case, (architecture, _) in CONFIGS.items() if "longrope" not in case}
CASES |= {"mamba": "mamba", "exaone4": "exaone4", "granitemoe": "granitemoe", "deepseek2": "deepseek2"}
CASES |= {
    "qwen35": "qwen35",
    "falcon-h1": "falcon-h1",
    "gpt-oss": "gpt-oss",
    "granite": "granite",
    "gemma4": "gemma4",
    "llama": "llama",
}
WINDOW = "attention.sliding_window"
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.original_context_length": 128}
# A value that no case has, and what must stand beside it to matter.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "context_length": (512, {}),
    "embedding_length": (128, {}),
    "feed_forward_length": (80, {}),
    "block_count": (9, {}),
    "attention.head_count": (2, {}),
    "attention.head_count_kv": (4, {}),
    "attention.key_length": (8, {}),
    "attention.value_length": (8, {}),
    "attention.key_length_swa": (8, {}),
    "attention.value_length_swa": (8, {}),
    "attention.layer_norm_rms_epsilon": (0.25, {}),
    "attention.layer_norm_epsilon": (0.25, {}),
    "attention.sliding_window": (48, {}),
    "attention.sliding_window_pattern": (1, {}),
    "attention.shared_kv_layers": (1, {}),
    "attention.scale": (0.7, {}),
    "attn_logit_softcapping": (7.0, {}),
    "final_logit_softcapping": (7.0, {}),
    "embedding_scale": (7.0, {}),
    "residual_scale": (7.0, {}),
    "logit_scale": (7.0, {}),
    "embedding_length_per_layer_input": (0, {}),
    "expert_count": (5, {"expert_used_count": 1}),
    "expert_used_count": (2, {}),
    "expert_feed_forward_length": (48, {}),
    "rope.freq_base": (777.0, {}),
    "shortconv.l_cache": (4, {}),
    "ssm.conv_kernel": (3, {}),
    "ssm.state_size": (4, {}),
    "ssm.group_count": (1, {}),
    "ssm.time_step_rank": (1, {}),
    "ssm.inner_size": (48, {}),
    "ssm.dt_b_c_rms": (True, {}),
    "leading_dense_block_count": (2, {}),
    "expert_shared_count": (3, {}),
    "attention.clamp_kqv": (7.0, {}),
    "attention.q_lora_rank": (14, {}),
    "attention.kv_lora_rank": (14, {}),
    "attention.key_length_mla": (32, {}),
    "attention.value_length_mla": (32, {}),
    "expert_gating_func": (1, {}),
    "rope.scaling.yarn_log_multiplier": (0.05, {}),
    "kda.head_dim": (8, {}),
    "full_attention_interval": (1, {}),
    "nextn_predict_layers": (2, {}),
    "expert_shared_feed_forward_length": (56, {}),
    "expert_weights_norm": (False, {}),
    "expert_weights_scale": (3.5, {}),
    "expert_group_count": (3, {}),
    "expert_group_used_count": (2, {}),
    "altup.active_idx": (1, {}),
    "altup.num_inputs": (3, {}),
    "activation_sparsity_scale": ([0.5] * 4, {}),
    "rope.freq_base_swa": (777.0, {}),
    "rope.dimension_count": (4, {}),
    "rope.dimension_count_swa": (4, {}),
    "rope.scale_linear": (3.0, {"rope.scaling.type": "linear"}),
    "rope.scaling.type": ("yarn", {"rope.scaling.factor": 3.0}),
    "rope.scaling.factor": (3.0, {"rope.scaling.type": "linear"}),
    "rope.scaling.original_context_length": (96, YARN),
    "rope.scaling.attn_factor": (0.5, YARN),
    "rope.scaling.yarn_beta_fast": (16.0, YARN),
    "rope.scaling.yarn_beta_slow": (2.0, YARN),
}


def keys_that_matter(row: Architecture) -> list[str]:
    return sorted({*row.keys, *row.checked} - row.ignored.keys())


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, torch.Tensor]]:
    return {case: random_model(CONFIGS[case][1]).state_dict() for case in {*CASES.values(), "olmo3", "gemma4-experts"}}


def write(
    case: str, folder: Path, states: dict[str, Any], pairs: dict[str, Any], without: tuple[str, ...] = ()
) -> Path:
    architecture, config = CONFIGS[case]
    extra = {f"{architecture}.{key}": value for key, value in pairs.items()}
    left_out = [f"{architecture}.{key}" for key in without]
    return write_gguf(folder / "model.gguf", architecture, config, states[case], extra=extra, without=left_out)


def config_of(path: Path) -> dict[str, Any]:
    return GGUFCheckpoint(path).config


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, row in architectures().items() for key in keys_that_matter(row)]
)
def test_no_key_of_a_table_is_dropped(name: str, key: str, states: dict[str, Any], tmp_path: Path):
    """rope.scaling.attn_factor was, by all but one architecture, for the table was everyone's."""
    value, beside = OTHER[key]
    case = "gemma4-experts" if name == "gemma4" and "expert" in key else CASES[name]
    if key == "rope.scaling.type" and name in ("gpt-oss", "olmo2", "arcee", "deepseek2"):
        value = "linear"  # these cases are scaled by yarn
    without = ("rope.scaling.factor",) if key == "rope.scale_linear" else ()
    before = config_once(case, tmp_path, states, beside, without)
    after = config_or_refused(write(case, tmp_path, states, {**beside, key: value}, without))
    assert after is None or after != before


_configs: dict[str, dict[str, Any] | None] = {}


def config_once(case: str, *arguments: Any) -> dict[str, Any] | None:
    """What a case says with nothing but what stands beside a key: of many keys the same."""
    asked = repr((case, arguments[2:]))
    if asked not in _configs:
        _configs[asked] = config_or_refused(write(case, *arguments))
    return _configs[asked]


def config_or_refused(path: Path) -> dict[str, Any] | None:
    try:
        return config_of(path)
    except CheckpointError:
        return None


def every_key() -> list[str]:
    """What gguf itself has names for, under an architecture's prefix."""
    groups = [value for value in vars(gguf.Keys).values() if isinstance(value, type)]
    names = [name for group in groups for name in vars(group).values() if isinstance(name, str)]
    return sorted(
        {name.removeprefix("{arch}.") for name in names if name.startswith("{arch}.") and name.count("{") == 1}
    )


@pytest.mark.parametrize("name", architectures())
def test_every_other_key_that_gguf_has_a_name_for_is_refused_by_name(name: str, states: dict[str, Any], tmp_path: Path):
    row = architectures()[name]
    others = [key for key in every_key() if key not in (*row.keys, *row.checked, *row.ignored)]
    assert len(others) > 60
    with pytest.raises(CheckpointError) as caught:
        config_of(write(CASES[name], tmp_path, states, dict.fromkeys(others, 77)))
    refused = {problem.split(": ", 1)[1].split(" ")[0] for problem in caught.value.problems}
    assert refused == {f"{name}.{key}" for key in others}


@pytest.mark.parametrize("name", [name for name, row in architectures().items() if WINDOW not in row.keys])
def test_a_window_of_zero_is_none_where_no_layer_slides_either(name: str, states: dict[str, Any], tmp_path: Path):
    plain = config_of(write(CASES[name], tmp_path, states, {}))
    assert config_of(write(CASES[name], tmp_path, states, {WINDOW: 0})) == plain


def test_thousands_of_unknown_keys_are_not_thousands_of_lines(states: dict[str, Any], tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        config_of(write("llama", tmp_path, states, {f"key.{index}": 1 for index in range(1000)}))
    assert len(caught.value.problems) == 201
    assert caught.value.problems[-1] == f"{tmp_path / 'model.gguf'}: and 800 more keys like these"


def test_keys_outside_the_architecture_are_a_packagers_own(states: dict[str, Any], tmp_path: Path):
    extra = {"general.url": "https://example.com", "quantize.imatrix.file": "x", "packager.version": 3}
    path = write_gguf(tmp_path / "model.gguf", "llama", CONFIGS["llama"][1], states["llama"], extra=extra)
    assert config_of(path)["model_type"] == "llama"


@pytest.mark.parametrize("key", ["rope.scaling.finetuned"])
def test_granite_without_a_rotary_is_refused(key: str, states: dict[str, Any], tmp_path: Path):
    """For Granite alone the key is a switch: false means that nothing turns."""
    assert config_of(write("granite", tmp_path, states, {key: True}))["model_type"] == "granite"
    with pytest.raises(CheckpointError, match=r"granite.rope.scaling.finetuned is False, which is not supported"):
        config_of(write("granite", tmp_path, states, {key: False}))
    assert config_of(write("llama", tmp_path, states, {key: False}))["model_type"] == "llama"


def test_granites_multipliers_are_one_where_the_file_has_zero_or_none(states: dict[str, Any], tmp_path: Path):
    scales = ("attention.scale", "embedding_scale", "residual_scale")
    for pairs, without in (({}, scales), (dict.fromkeys(scales, 0.0), ())):
        config = config_of(write("granite", tmp_path, states, pairs, without))
        assert (config["embedding_multiplier"], config["residual_multiplier"]) == (1.0, 1.0)
        assert config["attention_multiplier"] == 16**-0.5
    with pytest.raises(CheckpointError, match=r"granite.logit_scale is missing"):
        config_of(write("granite", tmp_path, states, {}, ("logit_scale",)))


@pytest.mark.parametrize("pattern", [[True, False, True, True, False], [1, 0, 1, 1, 0]])
def test_the_layers_that_slide_are_those_of_the_list(pattern: list[Any], states: dict[str, Any], tmp_path: Path):
    kinds = config_of(write("olmo3", tmp_path, states, {"attention.sliding_window_pattern": pattern}))["layer_types"]
    assert kinds == [SLIDING, FULL, SLIDING, SLIDING, FULL]


def test_a_period_says_which_layers_are_full(states: dict[str, Any], tmp_path: Path):
    def kinds_of(pairs: dict[str, Any], without: tuple[str, ...] = ()) -> str:
        config = config_of(write("olmo3", tmp_path, states, pairs, without))
        return "".join(kind[0] for kind in config["layer_types"])

    assert kinds_of({}, ("attention.sliding_window_pattern",)) == "sssfs"
    assert kinds_of({"attention.sliding_window_pattern": 2}) == "sfsfs"
    assert kinds_of({"attention.sliding_window_pattern": 1}) == "fffff"
    assert kinds_of({"attention.sliding_window_pattern": 0}) == "sssss"
    with pytest.raises(CheckpointError, match=r"sliding_window_pattern is not a list of 5 booleans"):
        kinds_of({"attention.sliding_window_pattern": [True, False]})


def test_olmo2_without_a_window_turns_in_one_way(states: dict[str, Any], tmp_path: Path):
    pairs = {"attention.sliding_window": 0, "attention.sliding_window_pattern": [True, False, True, True, False]}
    config = config_of(write("olmo3", tmp_path, states, pairs))
    assert config["model_type"] == "olmo2"
    assert config.keys().isdisjoint({"layer_types", "sliding_window"})
    assert config["rope_scaling"]["rope_type"] == "yarn"


GEMMA4 = {
    "feed_forward_length": ([96, 96, 96, 96, 96, 192], "differs between layers that do not share a cache"),
    "attention.head_count_kv": ([2, 2, 1, 2, 2, 1], "is 1 in full layers, which transformers has only where values"),
    "attention.shared_kv_layers": (6, "is 6, but there are 6 layers"),
    "attention.sliding_window_pattern": ([True, False, True, True, False, True], "makes the last layer slide"),
    "attention.value_length": (16, "is not attention.key_length, 32"),
    "attention.value_length_swa": (8, "is not attention.key_length_swa, 16"),
    "rope.dimension_count_swa": (8, "is 8, but head_dim is 16"),
    "rope.scaling.factor": (4.0, "rope_freqs.weight and a rope.scaling.factor together are not supported"),
}


@pytest.mark.parametrize("key", GEMMA4)
def test_what_gemma4_cannot_say_in_transformers_is_refused(key: str, states: dict[str, Any], tmp_path: Path):
    value, message = GEMMA4[key]
    with pytest.raises(CheckpointError) as caught:
        config_of(write("gemma4", tmp_path, states, {key: value}))
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["expert_count", "expert_used_count"])
def test_a_mixture_without_experts_is_refused(key: str, states: dict[str, Any], tmp_path: Path):
    with pytest.raises(CheckpointError, match=rf"qwen3moe.{key} is missing"):
        config_of(write("qwen3moe", tmp_path, states, {}, (key,)))
    with pytest.raises(CheckpointError, match=r"qwen3moe.expert_used_count is 7, but there are 6 experts"):
        config_of(write("qwen3moe", tmp_path, states, {"expert_used_count": 7}))


def test_the_experts_width_follows_from_the_rest(states: dict[str, Any], tmp_path: Path):
    config = config_of(write("qwen3moe", tmp_path, states, {}, ("expert_feed_forward_length",)))
    assert config["moe_intermediate_size"] == 96 // 3
    assert "intermediate_size" not in config_of(write("qwen3moe", tmp_path, states, {}, ("feed_forward_length",)))
    both = ("feed_forward_length", "expert_feed_forward_length")
    with pytest.raises(CheckpointError, match=r"qwen3moe.expert_feed_forward_length is missing"):
        config_of(write("qwen3moe", tmp_path, states, {}, both))


def test_keys_and_values_of_layers_that_share_a_cache_may_be_there(states: dict[str, Any], tmp_path: Path):
    """Google's files have them, and nothing reads them."""
    from coreai_recipes.planning.authoring import new_recipe

    state = dict(states["gemma4"])
    for layer in (3, 4, 5):
        for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
            state[f"model.layers.{layer}.self_attn.{name}"] = state[f"model.layers.{layer - 3}.self_attn.{name}"]
    path = write("gemma4", tmp_path, {"gemma4": state}, {})
    assert new_recipe(path).recipe.model.kinds["full_shared"].attention.shares_kv_with == "full"


def test_the_page_on_gguf_names_every_architecture():
    rows = (Path(__file__).parents[2] / "docs" / "gguf.md").read_text(encoding="utf-8").split("## Keys")[0]
    named = {word.strip() for row in rows.splitlines() if row.startswith("| ") for word in row.split("|")[1].split(",")}
    assert named - {"`general.architecture`"} == set(architectures())
