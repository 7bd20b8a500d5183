"""config.json -> recipe: every field is used, known not to matter, or refused by its name."""

import json
import re
from typing import Any

import pytest
from family_configs import DRAFT_TARGET as TARGET
from family_configs import FURTHER, TOGETHER, all_configs, assistant, decoders, plain_config, unusual_config
from family_values import LONGROPE
from hypothesis import given, settings, strategies
from read_configs import NOT_UNDERSTOOD, SIZES, needs, problems, read

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing import config_for, family_names, load_family
from coreai_recipes.recipe.importing.assembling import draft_from_config, recipe_from_config
from coreai_recipes.recipe.importing.comparing import compare_models
from coreai_recipes.recipe.importing.layer_pattern import shortest_layers
from coreai_recipes.recipe.importing.reading import plain_windows
from coreai_recipes.recipe.schema import Draft, Recipe

# What says how layers follow one another only where no list of them is given.
OVERRULED = {"sliding_window_pattern", "max_window_layers", "no_rope_layer_interval"}
# What makes such a field count in other families: that list left out, or another number.
COUNTING: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": None, "global_attn_every_n_layers": 2},
    **{name: {"mlp_layer_types": None, "first_k_dense_replace": 2} for name in ("axk1", "deepseek_v32", "glm_moe_dsa")},
    "cohere2_moe": {"mlp_layer_types": None, "rms_norm_eps": None},
    "exaone_moe": {"mlp_layer_types": None, "first_k_dense_replace": 2},
    "ernie4_5_moe": {"moe_layer_end_index": 1, "moe_layer_start_index": 1, "moe_layer_interval": 1},
    **{name: {"intermediate_size": None} for name in ("mamba", "falcon_mamba")},
    "flint": {"mlp_only_layers": [3]},
    "kimi_linear": {"mlp_layer_types": None},
    "olmo_hybrid": {"linear_num_value_heads": 4},
    **{name: {"layer_types": None} for name in ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")},
    "phimoe": {"rope_parameters": {name: value for name, value in LONGROPE.items() if not name.startswith("original")}},
}


@pytest.mark.parametrize("name", decoders())
def test_no_field_is_dropped_in_silence(name: str) -> None:
    """Without any one of its fields the unusual config is another model, or none.

    For a field that means nothing beside the unusual config's others, one of the family's further configs is.
    """
    family = load_family(name)
    unusual = {"model_type": name, **unusual_config(family)}
    further = [config for key, config in all_configs().items() if key in FURTHER and config["model_type"] == name]
    further += [{**unusual, **COUNTING[name]}] if name in COUNTING else []
    others = {family.longest, *OVERRULED, *TOGETHER.get(name, {})}
    others |= {family.layer_count} if family.counted else set()  # a list of the layers says how many there are
    for field in (family.fields.keys() & unusual.keys()) - others:
        if family.fields[field].only is None:
            assert any(matters(field, config) for config in (unusual, *further)), field


def matters(field: str, config: dict[str, Any]) -> bool:
    """Whether the config is another model, or none, without that field."""
    whole = recipe_from_config(config, "small").recipe.model
    try:
        rest = recipe_from_config({key: value for key, value in config.items() if key != field}, "small").recipe
    except CheckpointError:
        return True
    return compare_models(whole, rest.model) != []


FAMILIES_OF_KINDS = ("gemma4_text", "gemma3_text", "qwen2", "smollm3", "ministral")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=strategies.data())
def test_any_config_of_several_kinds_reads_back_as_the_same_model(data: strategies.DataObject) -> None:
    family = load_family(data.draw(strategies.sampled_from(FAMILIES_OF_KINDS)))
    unusual = unusual_config(family)
    kept = data.draw(strategies.sets(strategies.sampled_from(sorted(unusual))))
    config = {"model_type": family.name, **SIZES, **{field: unusual[field] for field in sorted(kept)}}
    count = config["num_hidden_layers"] = data.draw(strategies.integers(1, 9))
    if "layer_types" in kept:
        word = strategies.sampled_from(["sliding_attention", "full_attention"])
        config["layer_types"] = data.draw(strategies.lists(word, min_size=count, max_size=count))
    if "no_rope_layers" in kept:
        config["no_rope_layers"] = data.draw(
            strategies.lists(strategies.integers(0, 1), min_size=count, max_size=count)
        )
    if "num_kv_shared_layers" in kept:
        config["num_kv_shared_layers"] = data.draw(strategies.integers(0, count - 1))
    try:
        recipe = recipe_from_config(config, "small").recipe
    except CheckpointError:
        return  # what no recipe can be is refused, which other tests look at
    again = recipe_from_config(config_for(recipe), "small").recipe
    assert compare_models(again.model, recipe.model) == []


def test_another_name_is_read_as_the_family_that_is_chosen() -> None:
    config = {"model_type": "my_llama", **SIZES}
    imported = recipe_from_config(config, "small", chosen="llama")
    assert imported.recipe.model == read("llama").model
    with pytest.raises(CheckpointError, match=r"^--as lama: no such family\n  did you mean `llama`\?$"):
        recipe_from_config(config, "small", chosen="lama")


def test_a_field_under_two_names_that_agree_is_one_field() -> None:
    alone = recipe_from_config({"model_type": "bloom", "hidden_size": 32, "n_head": 4, "n_layer": 2}, "small").recipe
    both = {"n_embed": 32, "hidden_size": 32, "num_attention_heads": 4, "n_head": 4, "num_hidden_layers": None}
    assert recipe_from_config({"model_type": "bloom", **both, "n_layer": 2}, "small").recipe == alone


def test_absent_fields_are_transformers_defaults_and_not_off() -> None:
    assert read("mistral").model.kinds["sliding"].attention.window == 4096  # type: ignore[union-attr]
    assert list(read("mistral", sliding_window=None).model.kinds) == ["full"]
    assert read("qwen3").model.kinds["full"].attention.head_dim == 128
    assert read("llama").model.kinds["full"].attention.head_dim == 8


def test_layers_are_named_after_their_role_and_folded() -> None:
    kinds = read("smollm3", num_hidden_layers=8)
    assert json.loads(kinds.model_dump_json())["model"]["layers"] == [{"repeat": 2, "of": ["full"] * 3 + ["full_nope"]}]
    sliding = read("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert sliding.model.layer_kinds == ("full", "sliding", "sliding", "sliding")


@pytest.mark.parametrize(
    ("kinds", "folded"),
    [
        (["a"], ["a"]),
        (["a"] * 30, [{"repeat": 30, "of": ["a"]}]),
        (["a", "b"] * 3, [{"repeat": 3, "of": ["a", "b"]}]),
        ((["a"] * 5 + ["b"]) * 4 + ["a"] * 2, [{"repeat": 4, "of": ["a"] * 5 + ["b"]}, {"repeat": 2, "of": ["a"]}]),
        (["a"] * 28 + ["b"] * 4, [{"repeat": 28, "of": ["a"]}, {"repeat": 4, "of": ["b"]}]),
        (["a", "b", "c"], ["a", "b", "c"]),
    ],
)
def test_patterns_are_folded_into_the_shortest_list(kinds: list[str], folded: list[Any]) -> None:
    assert shortest_layers(kinds) == folded


def test_a_draft_reads_the_last_own_cache_of_each_sort() -> None:
    target = recipe_from_config(TARGET, "target").recipe
    draft = Draft.model_validate(draft_from_config(assistant(use_ordered_embeddings=True, num_centroids=8), target))
    assert {name: kind.attention.shares_kv_with for name, kind in draft.kinds.items()} == {
        "sliding": "sliding",
        "full": "full",
    }
    assert draft.layer_kinds == ("sliding", "full")
    assert (draft.hidden_size, draft.layer_scalar, draft.placement) == (16, True, "sandwich")
    assert draft.centroids is not None
    assert (draft.centroids.count, draft.centroids.top) == (8, 32)
    assert draft.reference.model_type == "gemma4_assistant"


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (assistant(backbone_hidden_size=48), "backbone_hidden_size: 48, and the target's hidden_size is 32"),
        (
            assistant({"num_key_value_heads": 4}),
            "num_kv_heads: 4 in sliding layers, and the target's sliding layers have 2",
        ),
        (assistant({"global_head_dim": 8}), "head_dim: 8 in full layers, and the target's full layers have 16"),
        (assistant({"sliding_window": 8}), "window: 8 in sliding layers, and the target's sliding layers have 16"),
        (
            assistant(tie_word_embeddings=False),
            "tie_word_embeddings: false: " + needs("a head of its own in a draft"),
        ),
    ],
)
def test_a_draft_that_does_not_fit_is_refused_with_both_numbers(config: dict[str, Any], problem: str) -> None:
    target = recipe_from_config(TARGET, "target").recipe
    with pytest.raises(CheckpointError) as caught:
        draft_from_config(config, target)
    assert f"config.json: {problem}" in caught.value.problems


def test_the_text_part_of_a_larger_config_is_read() -> None:
    inner = {key: value for key, value in TARGET.items() if key != "model_type"}
    whole = {"model_type": "gemma4", "text_config": inner, "vision_config": {"depth": 3}, "image_token_id": 9}
    assert recipe_from_config(whole, "target").recipe == recipe_from_config(TARGET, "target").recipe
    with pytest.raises(CheckpointError) as caught:
        recipe_from_config({**whole, "hidden_dim": 8}, "target")
    assert list(caught.value.problems) == [f"config.json: hidden_dim: {NOT_UNDERSTOOD}"]


@pytest.mark.parametrize("name", family_names())
def test_a_family_file_says_what_it_is(name: str) -> None:
    family = load_family(name)
    assert family.about
    assert family.part is None or load_family(str(family.family)).part is None


SLIDES = {"use_sliding_window": True, "max_window_layers": 2}


def with_windows() -> list[str]:
    """The families whose layers slide or are full and differ in nothing else."""
    return [
        name
        for name in decoders()
        if plain_windows(load_family(name))
        and any("attention.window" in rule.sets for rule in load_family(name).fields.values())
    ]


@pytest.mark.parametrize("name", with_windows())
def test_a_window_as_long_as_the_trained_texts_never_slides(name: str) -> None:
    """Phi-3.5-mini has a window of 262144 for the 131072 positions that it was trained for."""
    family = load_family(name)
    field = next(name for name, rule in family.fields.items() if "attention.window" in rule.sets)
    config = {"model_type": name, **plain_config(family), "max_position_embeddings": 65536}
    config |= {key: value for key, value in SLIDES.items() if key in family.fields}
    imported = recipe_from_config({**config, field: 65536}, "small")
    assert {kind.attention.kind for kind in imported.recipe.model.kinds.values()} == {"full"}
    assert imported.recipe.export.context == 2048
    assert f"{field}: 65536: never slides within the 65536 positions that it was trained for" in imported.notes
    assert recipe_from_config(config_for(imported.recipe), "small").recipe.model == imported.recipe.model
    shorter = recipe_from_config({**config, field: 65535}, "small").recipe
    assert "sliding" in {kind.attention.kind for kind in shorter.model.kinds.values()}


def test_layers_that_slide_with_a_rotary_of_their_own_stay_what_they_are() -> None:
    kinds = read("gemma3_text", sliding_window=4096, max_position_embeddings=1024).model.kinds
    assert kinds["sliding"].attention.kind == "sliding"


def theta(recipe: Recipe, kind: str) -> float:
    return recipe.model.kinds[kind].rotary.theta  # type: ignore[union-attr]


def test_a_theta_beside_the_parameters_counts_where_transformers_takes_it() -> None:
    """Each was another rotary than transformers', and nothing said so."""
    olmo = read("olmo3", rope_theta=7000.0)
    assert (theta(olmo, "full"), theta(olmo, "sliding")) == (7000.0, 500000.0)
    assert theta(read("cwm", rope_theta=7000.0), "full") == 1000000.0  # its parameters by default name their own
    scaled = read("ministral3", rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert {kind.rotary.theta for kind in scaled.model.kinds.values()} == {10000.0}  # type: ignore[union-attr]


def test_the_old_spelling_of_a_rope_type_says_nothing_where_parameters_are_by_layers() -> None:
    """transformers lays rope_scaling over {rope_type: default}: Gemma 3 with {type: linear} is not scaled."""
    assert problems("gemma3_text", num_hidden_layers=6, rope_scaling={"type": "linear", "factor": 8.0}) == [
        f"config.json: rope_scaling.factor: {NOT_UNDERSTOOD}"
    ]
    assert read("gemma3_text", num_hidden_layers=6, rope_scaling={"rope_type": "linear", "factor": 8.0})


def test_a_null_bound_of_yarns_ramp_is_its_default() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    said = {**yarn, "beta_fast": None, "beta_slow": None, "mscale": None}
    assert read("llama", rope_scaling=said).model == read("llama", rope_scaling=yarn).model


def test_two_parameters_of_a_rotary_that_a_recipe_holds_as_one_must_be_alike() -> None:
    config = all_configs()["phimoe-unusual"]
    config["rope_parameters"] = {**config["rope_parameters"], "short_mscale": 1.1}
    expected = "config.json: rope_parameters.long_mscale: 1.3: only supported where it is 1.1, as its fellow is"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        recipe_from_config(config, "small")


@pytest.mark.parametrize("said", [{}, {"time_step_rank": "auto"}, {"time_step_rank": 3}])
def test_a_rank_that_is_auto_is_a_sixteenth_rounded_up(said: dict[str, Any]) -> None:
    config = {"model_type": "mamba", "hidden_size": 40, "num_hidden_layers": 2, **said}
    recipe = recipe_from_config(config, "small").recipe
    (kind,) = recipe.model.kinds.values()
    assert kind.attention.model_dump(include={"channels", "step_rank"}) == {"channels": 80, "step_rank": 3}


def test_layers_that_repeat_a_pattern_are_as_many_as_there_are() -> None:
    types = {"block_types": ["recurrent", "attention", "recurrent"], "num_hidden_layers": 5}
    config = {"model_type": "recurrent_gemma", **types}
    layers = recipe_from_config(config, "small").recipe.model.layer_kinds
    assert list(layers) == ["recurrent", "sliding", "recurrent", "recurrent", "sliding"]
