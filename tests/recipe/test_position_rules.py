"""How many positions a recipe may have, and where that is said."""

import pytest
from family_configs import all_configs

from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.rules import find_problems


@pytest.mark.parametrize(("context", "is_refused"), [(300, False), (301, True)])
def test_a_context_ends_where_an_indexer_begins_to_choose(context: int, is_refused: bool) -> None:
    recipe = recipe_from_config(all_configs()["deepseek_v32-unusual"], "small").recipe
    data = recipe.model_dump()
    data["export"]["context"] = context
    found = [problem.message for problem in find_problems(data)]
    told = [
        f"301 positions, and from 300 on an indexer chooses which keys `{name}` sees: recipes do not have it"
        for name in recipe.model.kinds
    ]
    assert found == (told if is_refused else [])


def test_a_new_recipe_s_context_ends_there_too() -> None:
    config = {**all_configs()["deepseek_v32-unusual"], "max_position_embeddings": 4096}
    assert recipe_from_config(config, "small").recipe.export.context == 300
