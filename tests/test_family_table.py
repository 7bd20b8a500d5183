"""docs/families.md lists every family, with the figures that were measured; the README names the models."""

import re

from family_configs import decoders
from family_table import PAGE, README, models, split_page, table

from coreai_recipes.planning.authoring import family_rows
from coreai_recipes.recipe.importing.family import family_names, load_family, verified_families

STALE = "run `make families` (or `python tests/family_table.py NAME` for one)"


def test_every_family_was_measured() -> None:
    assert sorted(verified_families()) == sorted(decoders()), STALE


def test_the_table_of_the_page_is_the_generated_one() -> None:
    assert split_page(PAGE.read_text())[1] == table(), STALE


def test_the_readme_names_the_models_of_every_family() -> None:
    assert split_page(README.read_text())[1] == models(), STALE
    assert {"Command R", "DeepSeek R1", "Phi-4"} <= set(re.split(r",\s", models()))


def test_a_family_that_is_missing_from_the_table_is_noticed() -> None:
    shown = split_page(PAGE.read_text())[1]
    assert all(f" | `{name}` | " in shown for name in family_names())
    assert shown.replace("`phi3`", "`phi4`") != table()


def test_every_family_says_its_models_and_what_sets_them_apart() -> None:
    wrong = [name for name in family_names() if not all(load_family(name).about.partition(": ")[::2])]
    assert not wrong, "about is `MODELS: WHAT SETS THEM APART`"


def test_what_was_measured_is_above_the_floors() -> None:
    for name, found in verified_families().items():
        assert found["torch"][0] >= 100, name
        assert found["torch"][1] >= 80, name
        assert found["package"][0] >= 90, name
        assert found["package"][1] >= 70, name


def test_recipe_families_says_what_each_was_verified_with() -> None:
    rows = {row["family"]: row for row in family_rows()}
    assert rows["llama"]["verified"] == verified_families()["llama"]
    assert rows["gemma4"]["verified"] == verified_families()["gemma4_text"]
