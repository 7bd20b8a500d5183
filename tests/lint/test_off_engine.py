"""Rules of the engine are not held against what it is not meant to run, and that is said."""

from coreai_recipes.lint.findings import lint
from coreai_recipes.lint.rule import rules
from coreai_recipes.planning.outline import outline
from coreai_recipes.recipe import load_recipe
from coreai_recipes.report.rules import not_run

HOSTED = ["export.format=coreai", "export.host=coreai-models"]


def test_what_is_for_a_gpu_is_held_to_other_rules_alone() -> None:
    engine = {rule.id for rule in rules().values() if rule.fact_of == "engine" and "coreai" in rule.formats}
    found = lint(outline(load_recipe("tiny-llama", HOSTED)))
    assert found.off_engine == ()
    assert {finding.id for finding in found.findings} & engine
    assert found.crossings
    other = lint(outline(load_recipe("tiny-llama", [HOSTED[0], f"{HOSTED[1]}-dynamic"])))
    assert {*other.off_engine} == engine
    assert not {finding.id for finding in other.findings} & engine
    assert other.crossings == ()
    assert any(line.startswith("not run, being of the engine, and the host asks") for line in not_run(other.to_json()))
