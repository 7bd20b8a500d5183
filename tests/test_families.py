"""Every family: a small random transformers model of unusual values -> config.json -> recipe -> the stages.

Nobody writes a test for a new family: its file in recipe/families is one more parameter here.
"""

from pathlib import Path
from typing import Any

import pytest
from families import small_model
from family_configs import TOGETHER, all_configs, decoders, unusual_config

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import RecipeError
from coreai_recipes.model import build_decoder
from coreai_recipes.recipe.importing import config_for, load_family
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.importing.comparing import compare_models
from coreai_recipes.recipe.importing.conditions import value_in
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification import run_stages
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint

CONFIGS = all_configs()


def read_recipe(config: dict[str, Any]) -> Recipe:
    return recipe_from_config(config, "small").recipe


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> SafetensorsCheckpoint:
    """transformers' model of a config with random weights, as save_pretrained leaves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = dict(request.param)
    theirs = AutoConfig.for_model(config.pop("model_type"), **config)
    theirs._experts_implementation = "eager"
    small_model(AutoModelForCausalLM.from_config, theirs, seed=3).save_pretrained(tmp_path)
    return SafetensorsCheckpoint(tmp_path)


@pytest.mark.parametrize("name", decoders())
def test_every_field_that_is_read_differs_from_its_default(name: str) -> None:
    family = load_family(name)
    config = unusual_config(family)
    fixed = {field for field, rule in family.fields.items() if rule.only is not None}
    same = [field for field in config.keys() & family.fields.keys() if config[field] == value_in({}, field, family)]
    assert set(same) - fixed - TOGETHER.get(name, {}).keys() == set()


@pytest.mark.parametrize("name", decoders())
def test_the_defaults_are_those_of_transformers_config_class(name: str) -> None:
    from dataclasses import MISSING, fields

    from transformers import CONFIG_MAPPING

    theirs = {field.name: field.default for field in fields(CONFIG_MAPPING[name]) if field.default is not MISSING}
    family = load_family(name)
    ours = {field: rule.default for field, rule in family.fields.items() if field in theirs}
    assert ours == {field: theirs[field] for field in ours}


@pytest.mark.parametrize("name", decoders())
def test_every_field_of_transformers_config_class_is_known(name: str) -> None:
    from dataclasses import fields

    from transformers import CONFIG_MAPPING

    from coreai_recipes.recipe.importing.family import irrelevant_fields

    family = load_family(name)
    known = family.fields.keys() | irrelevant_fields().keys() | family.ignored.keys() | family.rope_fields
    unknown = {field.name for field in fields(CONFIG_MAPPING[name])} - known
    assert unknown == set()


@pytest.mark.parametrize("saved", CONFIGS.values(), ids=CONFIGS, indirect=True)
def test_a_recipe_read_from_a_config_is_transformers_model(
    saved: SafetensorsCheckpoint, request: pytest.FixtureRequest
) -> None:
    recipe = read_recipe(saved.config)
    given = CONFIGS[request.node.callspec.id]
    assert compare_models(recipe.model, read_recipe(given).model) == []
    try:
        build_decoder(recipe)
    except RecipeError as error:
        pytest.skip(str(error))
    report = run_stages(recipe, saved, None, stages=["rotary", "torch"])
    assert [(stage.name, stage.passed, stage.detail) for stage in report.stages if stage.passed is False] == []
    assert report.stages[-1].passed


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_config_for_a_recipe_reads_back_as_the_same_model(config: dict[str, Any]) -> None:
    recipe = read_recipe(config)
    again = read_recipe(config_for(recipe))
    assert again.model == recipe.model
    assert again.weights == recipe.weights


@pytest.mark.parametrize("name", decoders())
def test_random_weights_fit_the_recipe_and_its_reference(name: str) -> None:
    recipe = read_recipe(CONFIGS[f"{name}-unusual"])
    try:
        build_decoder(recipe)
    except RecipeError as error:
        pytest.skip(str(error))
    report = run_stages(recipe, RandomCheckpoint(recipe), None, stages=["torch"])
    assert report.passed, report.to_json()
