"""Every rule: a program that breaks it, and one that does not."""

from pathlib import Path

import pytest
from coremltools.proto import Model_pb2

from coreai_recipes.lint.findings import Finding, lint
from coreai_recipes.lint.reading import open_subject
from coreai_recipes.lint.rule import rules
from tests.evaluate.mil_programs import write_package
from tests.lint.rule_cases import CASES, Case

# Rules about files, tokenizers, shapes that a call chooses and packages of several functions: in tests of their own.
ELSEWHERE = {"dyn-shape", "pkg-size", "multi-fn", "fn-count", "eos-template"}


def findings(case: Case, rule: str, folder: Path) -> tuple[Finding, ...]:
    package = write_package(folder / "one.mlpackage", case.build, case.inputs, case.states)
    file = next(package.glob("Data/**/*.mlmodel"))
    model = Model_pb2.Model.FromString(file.read_bytes())
    case.patch(model)
    file.write_bytes(model.SerializeToString())
    return lint(open_subject(package), only=[rule]).findings


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_fires_where_it_must_and_nowhere_else(rule: str, tmp_path: Path) -> None:
    breaks, keeps = CASES[rule]
    found = findings(breaks, rule, tmp_path)
    assert {finding.id for finding in found} == {rule}
    assert found[0].level == breaks.level  # the worst is first
    assert all(finding.message and finding.place and finding.source for finding in found)
    (tmp_path / "other").mkdir()
    assert findings(keeps, rule, tmp_path / "other") == ()


def test_every_rule_has_its_cases() -> None:
    assert CASES.keys() | ELSEWHERE == rules().keys()
    assert len(rules()) == 54
