"""Every rule: a program that breaks it, and one that does not."""

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.proto import Model_pb2

from coreai_recipes.lint.devices import devices, find_device
from coreai_recipes.lint.findings import Finding, lint
from coreai_recipes.lint.reading import open_subject
from coreai_recipes.lint.rule import rules
from coreai_recipes.recipe import engine_words, load_recipe
from tests.evaluate.mil_programs import write_package
from tests.lint.rule_cases import CASES, OTHERS
from tests.lint.rule_programs import Case, cache, sum_of_states, x16
from tests.lint.rule_table import BEGIN, END, PAGE, table

# Rules about files, tokenizers, shapes that a call chooses and packages of several functions: in tests of their own.
ELSEWHERE = {"dyn-shape", "pkg-size", "multi-fn", "fn-count", "eos-template"}

SETTING = re.compile(r"--set ([a-z][a-z0-9_.]*=[a-z0-9_.]+)(?![A-Za-z])")
REMEDIES = [text for rule in rules().values() for text in (rule.remedy, *(case.remedy or "" for case in rule.cases))]


def findings(case: Case, rule: str, folder: Path, device: str | None = None) -> tuple[Finding, ...]:
    package = write_package(folder / "one.mlpackage", case.build, case.inputs, case.states)
    file = next(package.glob("Data/**/*.mlmodel"))
    model = Model_pb2.Model.FromString(file.read_bytes())
    case.patch(model)
    file.write_bytes(model.SerializeToString())
    return lint(open_subject(package), None if device is None else find_device(device), only=[rule]).findings


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_fires_where_it_must_and_nowhere_else(rule: str, tmp_path: Path) -> None:
    breaks, keeps = CASES[rule]
    found = findings(breaks, rule, tmp_path)
    assert {finding.id for finding in found} == {rule}
    assert found[0].level == breaks.level  # the worst is first
    assert all(finding.message and finding.place and finding.source for finding in found)
    (tmp_path / "other").mkdir()
    assert findings(keeps, rule, tmp_path / "other") == ()


@pytest.mark.parametrize("name", OTHERS)
def test_a_rule_tells_cases_and_chips_apart(name: str, tmp_path: Path) -> None:
    rule, device, level, case = OTHERS[name]
    found = findings(case, rule, tmp_path, device)
    assert (found[0].level if found else None) == level


def test_packed_states_are_advised_where_two_of_them_can_be_one(tmp_path: Path) -> None:
    """LFM2's and Gemma 4's were advised so, too, where they are packed already."""
    alike, differ = cache((1, 1, 32, 32), (2, 1, 32, 32)), cache((1, 1, 32, 32), (1, 1, 64, 32))
    for rule, device in (("state-count", None), ("state-uniform", "M1")):
        advice = []
        for states in (alike, differ):
            folder = tmp_path / f"{rule}-{len(advice)}"
            folder.mkdir()
            (found,) = findings(Case(sum_of_states, x16(32), states), rule, folder, device)
            advice.append("export.states=packed" in found.remedy)
        assert advice == [True, False], rule


def test_every_rule_has_its_cases() -> None:
    assert CASES.keys() | ELSEWHERE == rules().keys()
    assert len(rules()) == 55


def test_the_page_has_the_rules_as_they_are() -> None:
    """`python -m tests.lint.rule_table` writes it."""
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip() == table()


def test_recipes_name_the_devices_and_rules_that_there_are() -> None:
    assert get_args(engine_words.DeviceId) == tuple(devices())
    assert get_args(engine_words.RuleId) == tuple(rules())


@pytest.mark.parametrize("remedy", sorted({found for text in REMEDIES for found in SETTING.findall(text)}))
def test_a_remedy_is_a_setting_that_a_recipe_takes(remedy: str) -> None:
    load_recipe("gemma4", [remedy])


def test_a_mask_that_lies_in_the_weights_is_seen(tmp_path: Path) -> None:
    """finfo.min of float32, as transformers' masks have it, is -inf in a float16 package."""

    def build(x: Any, seen: Any) -> Any:
        mask = np.triu(np.full((32, 32), -np.inf, np.float16), 1)
        padding = mb.mul(x=mb.cast(x=seen, dtype="fp16"), y=np.float16(-65504))
        return mb.softmax(x=mb.add(x=x, y=mb.add(x=mask, y=padding)), axis=-1)

    found = findings(Case(build, {"x": ("float16", (32, 32)), "seen": ("int32", (1, 32))}), "mask-inf", tmp_path)
    assert [(finding.level, finding.place) for finding in found] == [("error", "add_0"), ("warning", "mul_0")]
