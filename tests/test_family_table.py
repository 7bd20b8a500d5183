"""The README's table of families lists those that there are, with the figures that were measured."""

from family_configs import decoders
from family_table import README, split_readme, table

from coreai_recipes.authoring import family_rows
from coreai_recipes.recipe.importing.family import family_names, verified_families

STALE = "run `make families` (or `python tests/family_table.py NAME` for one)"


def test_every_family_was_measured() -> None:
    assert sorted(verified_families()) == sorted(decoders()), STALE


def test_the_table_of_the_readme_is_the_generated_one() -> None:
    assert split_readme(README.read_text())[1] == table(), STALE


def test_a_family_that_is_missing_from_the_table_is_noticed() -> None:
    shown = split_readme(README.read_text())[1]
    assert all(f"\n| `{name}` |" in shown for name in family_names())
    assert shown.replace("| `phi3` |", "| `phi4` |") != table()


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
