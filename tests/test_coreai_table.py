"""docs/coreai.md says of each family that was run what was found of it as an .aimodel."""

from coreai_table import END, PAGE, measured, table

from coreai_recipes.recipe.importing.family import verified_families

STALE = "run `make coreai-families` (or `python tests/coreai_table.py NAME` for one)"


def test_the_table_of_the_page_is_the_generated_one() -> None:
    assert table(measured()) in PAGE.read_text(), STALE


def test_what_was_measured_are_families_above_the_floors() -> None:
    assert measured().keys() <= verified_families().keys()
    for name, found in measured().items():
        assert found.keys() in ({"package"}, {"reason"}), name
        if "package" in found:
            assert found["package"][0] >= 90, name
            assert found["package"][1] >= 70, name


def test_the_table_says_how_many_were_run_and_why_others_fail() -> None:
    said = table({"llama": {"package": [131.2, 113.0]}, "phi": {"reason": "a | b"}})
    assert "\n1 of the 2 families that were run pass. A family that is not in the table was not run.\n" in said
    assert said.endswith("\n| `llama` | 131 / 113 |  |\n| `phi` | - | a \\| b |\n" + END)
