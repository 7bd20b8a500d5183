"""docs/coreai.md says of each family that was run what was found of it as an .aimodel."""

from coreai_table import END, PAGE, measured, table

from coreai_recipes.recipe.importing.family import verified_families

STALE = "run `make coreai-families` (or `python tests/coreai_table.py NAME` for one)"


def test_the_table_of_the_page_is_the_generated_one() -> None:
    assert table(measured()) in PAGE.read_text(), STALE


def test_what_was_measured_are_families_above_the_floors() -> None:
    assert measured().keys() <= verified_families().keys()
    for name, found in measured().items():
        assert len(found.keys() & {"package", "reason"}) == len(found.keys() & {"main", "no_main"}) == 1, name
        for key in found.keys() & {"package", "main"}:
            assert found[key][0] >= 90, (name, key)
            assert found[key][1] >= 70, (name, key)


def test_the_table_says_how_many_were_run_and_why_others_fail() -> None:
    figures = [131.2, 113.0]
    found = {"mamba": {"package": figures, "no_main": "a | b"}, "phi": {"reason": "c", "no_main": "d"}}
    said = table({"llama": {"package": figures, "main": figures}, **found})
    assert "\n2 of the 3 families that were run pass, and 1 as `main` of coreai-models. A family that" in said
    lines = ["| `llama` | 131 / 113 | 131 / 113 |  |", "| `mamba` | 131 / 113 | - | a \\| b |", "| `phi` | - | - | c |"]
    assert said.endswith("\n".join(["", *lines, END]))
