"""What a call costs by sizes alone is what is counted in a saved program."""

from pathlib import Path

import pytest

from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.manifest.reading import read_manifest
from coreai_recipes.planning.costs import call_costs
from coreai_recipes.recipe.loader import load_sealed


@pytest.mark.parametrize("fixture", ["tiny_bundle", "gemma4_tiny_bundle"])
def test_costs_by_sizes_are_those_of_the_saved_program(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    recipe = load_sealed(bundle / "recipe.yaml")
    functions = read_manifest(bundle)["packages"][-1]["functions"]
    costs = call_costs(build_stacks(recipe, exported_form(recipe)))
    assert costs.keys() == functions.keys()
    for name, ours in costs.items():
        counted = functions[name]["cost"]
        assert ours["weight_bytes"] == counted["weight_bytes"], name
        assert ours["state_bytes"] == pytest.approx(counted["state_bytes"], rel=0.05), name
        assert 0.95 * counted["flops"] < ours["flops"] < counted["flops"], name  # products alone
