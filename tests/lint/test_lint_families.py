"""Programs that we write, held against the rules about operations, rank and dtype (not about toy sizes)."""

from pathlib import Path

import pytest

from coreai_recipes.lint.findings import lint
from coreai_recipes.lint.reading import open_subject
from tests.families import FAMILIES
from tests.programs import export

RULES = (
    "rank-5", "dyn-shape", "f32-mid", "int-mid", "exp-raw", "square-256", "softplus", "nan-logic", "mask-inf", "trig",
    "gather-dyn", "gather-nd", "no-path", "repeat-kv", "linear-conv", "dyn-weight", "state-inplace", "state-shift",
    "slice-w4094", "rsqrt-0", "crossing", "sdpa-op",
)  # fmt: skip


@pytest.mark.parametrize("family", ["gemma3"])
def test_a_familys_program_breaks_no_rule_about_operations(family: str, tmp_path: Path) -> None:
    """Gathers by run-time indices kept prefill and score of every sliding layer off the engine."""
    export(FAMILIES[family]().recipe, tmp_path / "one.mlpackage")
    found = lint(open_subject(tmp_path / "one.mlpackage"), only=RULES)
    assert [(finding.id, finding.function, finding.place) for finding in found.findings] == []
    assert [(each.function, each.from_, each.to) for each in found.crossings] == [
        (function, "cpu", "engine") for function in ("decode", "prefill", "score")
    ]
