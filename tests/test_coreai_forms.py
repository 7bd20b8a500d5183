"""docs/coreai.md and docs/core-ai-rotary.md say of each form that was measured what was found of it."""

import pytest
from coreai_forms import DOCS, END, TABLES, Table, measured, written

STALE = "run `make coreai-forms` (or `python tests/coreai_forms.py MODEL` for one)"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.field)
def test_the_table_of_the_page_is_the_generated_one(table: Table) -> None:
    figures = measured()[table.field]
    assert figures.keys() == table.models.keys(), STALE
    assert written(table, figures) in (DOCS / table.page).read_text(), STALE


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.field)
def test_what_was_measured_is_above_its_floor_or_says_why_not(table: Table) -> None:
    for model, forms in measured()[table.field].items():
        assert forms.keys() == set(table.words), model
        for entry in forms.values():
            if "package" in entry:
                assert entry["package"] >= 90, model
                assert ("reason" in entry) == (entry["package_float16"] < entry["floor"]), model
            else:
                assert entry["reason"], model


def test_a_form_that_was_refused_says_why() -> None:
    said = written(TABLES[0], {"lfm2-unusual": {"two_float16": {"reason": "a | b"}}})
    assert said.endswith("| `two_float16` | - | - | - | - | a \\| b |\n" + END.format("recurrent_state"))
