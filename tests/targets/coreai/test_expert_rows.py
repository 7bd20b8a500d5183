"""What a converted decode step reads of its experts."""

import pytest
from coreai_table import as_coreai
from test_families import PACKAGED, read_recipe

from coreai_recipes.aimodel.rewriting import load
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.functions import fragments_of
from coreai_recipes.targets.coreai.convert import convert_fragment


@pytest.mark.parametrize(("family", "gathered"), [("mixtral", 2), ("gpt_oss", 4)])
def test_a_token_takes_the_rows_of_its_experts_by_an_index_each(family: str, gathered: int) -> None:
    """Both weights, and biases where a family has them: none by an index for every number."""
    recipe = as_coreai(read_recipe(PACKAGED[family]))
    found = fragments_of(build_stacks(recipe, exported_form(recipe))).values()
    steps = [fragment for fragment in found if fragment.name.startswith("layer_") and fragment.name.endswith("_1")]
    assert steps
    for text in (str(load(convert_fragment(fragment))) for fragment in steps):
        assert "gather_along_axis" not in text
        assert text.count("coreai.gather_nd") == gathered
