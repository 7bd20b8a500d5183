"""longrope with a context on either side of the original one: what the context chooses holds wherever a recipe is run.

The greedy comparison used to build our decoder with a context cut to the prompts, which made it take the short factors.
"""

import json
import shutil
from pathlib import Path

import pytest

from coreai_recipes import build_decoder, verify
from coreai_recipes.decoder.states import state_specs
from coreai_recipes.planning.authoring import new_recipe
from coreai_recipes.recipe import Recipe

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
ORIGINAL = 256


@pytest.fixture
def stretched(tmp_path: Path) -> Path:
    """tiny-llama with two lists of factors."""
    shutil.copytree(TINY, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    del config["rope_parameters"]
    config |= {
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + pair * 0.02 for pair in range(16)],
            "long_factor": [1.1 + pair * 0.1 for pair in range(16)],
            "original_max_position_embeddings": ORIGINAL,
        },
    }
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    return tmp_path / "m"


def with_context(recipe: Recipe, context: int) -> Recipe:
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"context": context})})


@pytest.mark.parametrize("context", [ORIGINAL, ORIGINAL + 1, 2 * ORIGINAL])
def test_both_sides_of_the_original_context_are_verified(stretched: Path, context: int) -> None:
    recipe = with_context(new_recipe(stretched).recipe, context)
    rotary, layers = verify(recipe, stretched, stages=["rotary", "torch"]).stages
    assert (rotary.passed, layers.passed) == (True, True), layers.detail
    assert layers.detail["greedy"]["not_equal"] == []


def test_weights_made_up_are_verified_beyond_it_too(stretched: Path) -> None:
    recipe = with_context(new_recipe(stretched).recipe, 2 * ORIGINAL)
    report = verify(recipe, random=True, stages=["rotary", "torch"])
    assert report.passed, report.to_json()


def test_fewer_positions_shorten_the_states_and_nothing_else(stretched: Path) -> None:
    recipe = with_context(new_recipe(stretched).recipe, 2 * ORIGINAL)
    whole, short = build_decoder(recipe), build_decoder(recipe, positions=40)
    assert short.front.rotary("full").inv_freq == whole.front.rotary("full").inv_freq
    assert short.front.states == state_specs(with_context(recipe, 40)) != whole.front.states
    assert short.recipe == recipe
