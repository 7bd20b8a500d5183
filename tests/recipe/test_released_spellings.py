"""Fields of released config.json files that transformers' own config classes take in another way than they stand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_configs import plain_config

from coreai_recipes.errors import CheckpointError
from coreai_recipes.primitives.rotary import build_rotary
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.importing import config_for, load_family
from coreai_recipes.recipe.importing.assembling import recipe_from_config


def read(model_type: str, **said: Any) -> Recipe:
    """The recipe of a small config of that type in which a released file's fields stand."""
    config = {"model_type": model_type, **plain_config(load_family(model_type)), **said}
    return recipe_from_config({name: value for name, value in config.items() if value is not ...}, "small").recipe


def test_minimax_m2_says_how_many_dimensions_turn() -> None:
    """MiniMaxAI/MiniMax-M2.5."""
    from transformers import MiniMaxM2Config

    said = {"use_qk_norm": True, "qk_norm_type": "per_layer", "scoring_func": "sigmoid", "rope_theta": 5000000}
    (kind,) = read("minimax_m2", head_dim=16, rotary_dim=4, **said).model.kinds.values()
    assert (kind.rotary.kind, kind.rotary.factor) == ("partial", 0.25)
    theirs = MiniMaxM2Config(head_dim=16, rotary_dim=4, rope_theta=5000000).rope_parameters
    assert theirs["partial_rotary_factor"] == 0.25
    with pytest.raises(CheckpointError, match=r"rotary_dim: .four. is not a finite number"):
        read("minimax_m2", head_dim=16, rotary_dim="four")


def test_mimo_sees_its_own_position_beside_those_that_it_counts() -> None:
    """XiaomiMiMo/MiMo-V2-Flash."""
    from transformers import MiMoV2FlashConfig

    said = {"rope_theta": 5000000, "swa_head_dim": 192, "sliding_window": 128, "sliding_window_size": 128}
    kinds = read("mimo_v2_flash", moe_layer_freq=[0, *[1] * 47], **said).model.kinds.values()
    windows = {kind.attention.window for kind in kinds if kind.attention.kind == "sliding"}
    assert windows == {129} == {MiMoV2FlashConfig(sliding_window=128, sliding_window_size=128).sliding_window}


def test_granite_without_experts_takes_none_of_them() -> None:
    """ibm-granite's dense hybrids."""
    recipe = read("granitemoehybrid", num_local_experts=0, num_experts_per_tok=0, layer_types=["attention"] * 5)
    assert {kind.mlp.kind for kind in recipe.model.kinds.values()} == {"gated"}


def test_glm_5_has_older_words_for_experts_and_layers() -> None:
    """zai-org/GLM-5, nvidia/GLM-5.2-NVFP4."""
    types = ["deepseek_sparse_attention"] * 2
    recipe = read(
        "glm_moe_dsa",
        rope_interleave=True,
        num_experts=12,
        n_routed_experts=...,
        num_hidden_layers=2,
        layer_types=types,
    )
    assert {kind.rotary.pairing for kind in recipe.model.kinds.values()} == {"interleaved"}


def test_a_scaling_of_llama_3_may_have_nothing_between_its_ends() -> None:
    """meta-llama/Llama-4-Scout-17B-16E-Instruct: both ends are 1, and no frequency is a mixture of two."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
    said = {**scaling, "rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    (kind,) = read("llama", head_dim=128, rope_parameters=said).model.kinds.values()
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(head_dim=128, rope_parameters=said), "cpu")
    assert torch.equal(torch.tensor(build_rotary(kind.rotary, 128).inv_freq), theirs)


def test_llama_4_lists_no_layers_where_every_fourth_does_not_turn() -> None:
    """meta-llama/Llama-4-Scout-17B-16E-Instruct: "no_rope_layers": []."""
    from transformers import Llama4TextConfig

    theirs = Llama4TextConfig(num_hidden_layers=8, no_rope_layers=[]).no_rope_layers
    recipe = read("llama4_text", num_hidden_layers=8, no_rope_layers=[], layer_types=...)
    turns = [recipe.model.kinds[name].rotary.kind != "none" for name in recipe.model.layer_kinds]
    assert turns == [bool(each) for each in theirs]
    with pytest.raises(CheckpointError, match="no_rope_layers: 1 entries, and num_hidden_layers is 8"):
        read("llama4_text", num_hidden_layers=8, no_rope_layers=[1], layer_types=...)


def test_devstral_2_says_with_zeros_that_queries_do_not_grow_and_which_factor_is_not_said() -> None:
    """mistralai/Devstral-2-123B-Instruct-2512."""
    from transformers import Ministral3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    said = {
        "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 64.0, "original_max_position_embeddings": 4096,
        "beta_fast": 4.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0, "llama_4_scaling_beta": 0.0,
    }  # fmt: skip
    recipe = read("ministral3", head_dim=128, rope_parameters=said)
    (kind,) = recipe.model.kinds.values()
    assert kind.attention.temperature is None
    config = Ministral3Config(head_dim=128, max_position_embeddings=262144, rope_parameters=said)
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    ours = build_rotary(kind.rotary, 128)
    assert torch.equal(torch.tensor(ours.inv_freq), theirs)
    assert ours.attention_factor == factor
    assert config_for(recipe)["rope_parameters"]["llama_4_scaling_beta"] == 0


def test_layers_with_fields_of_their_own_have_numbers_as_transformers_writes_them() -> None:
    """transformers 5.23 pads them where there are more than ten layers: "05", "11"."""
    from transformers import Gemma4TextConfig

    sizes = {"num_hidden_layers": 12, "hidden_size_per_layer_input": 0, "head_dim": 8}
    written = json.loads(Gemma4TextConfig(**sizes, global_head_dim=16).to_json_string())
    assert sorted(written["per_layer_config"]) == ["05", "11"]
    recipe = recipe_from_config(written, "small").recipe
    heads = {name: kind.attention.head_dim for name, kind in recipe.model.kinds.items()}
    assert heads == {"sliding": 8, "full": 16}


def test_a_window_that_is_turned_off_may_stand_around_the_text_part_with_its_size() -> None:
    """allenai/olmOCR-2-7B-1025; transformers 4.55 wrote tokens of images into the part."""
    part = {"model_type": "qwen2_5_vl_text", **plain_config(load_family("qwen2_5_vl_text"))}
    part |= {"use_sliding_window": False, "sliding_window": None, "image_token_id": None, "video_token_id": None}
    config = {**part, "model_type": "qwen2_5_vl", "text_config": part, "vision_config": {"depth": 2}}
    (kind,) = recipe_from_config({**config, "sliding_window": 32768}, "small").recipe.model.kinds.values()
    assert kind.attention.kind == "full"
    part |= {"use_sliding_window": True}
    with pytest.raises(CheckpointError, match="sliding_window: 32768: this model needs layers that slide"):
        recipe_from_config({**config, "sliding_window": 32768}, "small")


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("falcon_mamba", {"use_falcon_mambapy": False}),
        ("phi3", {"ignore_keys_at_rope_validation": None}),
        ("bamba", {"time_step_min": 0.001, "time_step_max": 0.1, "use_mamba_kernels": True}),
        ("falcon_h1", {"time_step_min": 0.001, "time_step_max": 0.1}),
        ("granitemoehybrid", {"time_step_min": 0.001, "time_step_max": 0.1}),
    ],
)
def test_what_other_releases_of_transformers_wrote_of_a_family_changes_nothing(
    model_type: str, said: dict[str, Any]
) -> None:
    """4.57 and 5.0 to 5.14: fields that 5.23's classes do not have."""
    assert read(model_type, **said) == read(model_type)


def test_gpt_j_s_own_rotary_may_be_called_a_scaling() -> None:
    """EleutherAI/gpt-j-6b, as mlc-ai/mlc-llm keeps it."""
    assert read("gptj", rope_scaling={"rope_type": "gptj"}) == read("gptj")
    with pytest.raises(CheckpointError, match=r"rope_scaling: .* needs a scaled rotary, which"):
        read("gptj", rope_scaling={"rope_type": "linear", "factor": 2.0})


def test_a_mistral_that_lists_its_layers_is_a_ministral_as_for_transformers(tmp_path: Path) -> None:
    """Mistral's own class does not look at the list, and has every layer slide."""
    from transformers import AutoConfig

    config = {"model_type": "mistral", **plain_config(load_family("mistral")), "num_hidden_layers": 2}
    config |= {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).model_type == "ministral"
    recipe = recipe_from_config(config, "small").recipe
    assert recipe.reference is not None
    assert (recipe.reference.model_type, recipe.model.layer_kinds) == ("ministral", ("full", "sliding"))


def test_exaone_4_5_names_its_text_part_as_it_was_first_released() -> None:
    """LGAI-EXAONE/EXAONE-4.5-33B."""
    part = {"model_type": "exaone4_5_text", **plain_config(load_family("exaone4"))}
    recipe = recipe_from_config({"model_type": "exaone4_5", "text_config": part}, "small").recipe
    assert recipe.reference is not None
    assert recipe.reference.model_type == "exaone4"


def test_a_rope_type_beside_those_of_the_layers_says_nothing() -> None:
    """Laguna as transformers 5.8 to 5.14 wrote it."""
    own = {"rope_theta": 500.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    both = {"full_attention": own, "sliding_attention": own}
    assert read("laguna", rope_parameters={**both, "rope_type": "default"}) == read("laguna", rope_parameters=both)
    with pytest.raises(CheckpointError, match=r"rope_parameters\.rope_type: not understood"):
        read("laguna", rope_parameters={**both, "rope_type": "yarn"})
