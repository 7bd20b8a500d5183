"""What states lose after many tokens, one a call: measured where that is quick or asked for, and else said."""

import pytest
from small_delta import save_delta, small_delta
from verify_cases import Export, Saved

from coreai_recipes.report.verdict import print_report
from coreai_recipes.verification import run_stages, state_lengths
from coreai_recipes.verification.report import Report
from coreai_recipes.verification.state_lengths import long_text, measure_lengths
from coreai_recipes.verification.subject import Subject


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_delta(small_delta(), tmp_path_factory.mktemp("delta"))


@pytest.fixture(autouse=True)
def short_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that a context of 96 tokens has, and one that it has not."""
    monkeypatch.setattr(state_lengths, "LENGTHS", (40, 90, 200))
    monkeypatch.setattr(state_lengths, "LAST", 8)


def prove(delta: Saved, export: Export) -> Report:
    recipe, checkpoint = delta
    return run_stages(recipe, checkpoint, export(recipe, checkpoint), stages=["package_float16"])


def words(report: Report, capsys: pytest.CaptureFixture[str]) -> str:
    print_report(report.to_json())
    return " ".join(capsys.readouterr().out.split())


def test_each_length_within_the_context_is_measured(
    delta: Saved, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    report = prove(delta, export)
    states = report.stages[0].detail["states"]
    found = {each["tokens"]: each["psnr_db"] for each in states["after"]["lengths"]}
    assert [*found] == [40, 90]
    assert all(60 < decibels < 110 for decibels in found.values()), "float16 states lose something, and not much"
    said = words(report, capsys)
    assert f"its states alone after 40 tokens, one a call: {found[40]:.1f} dB" in said
    assert "not measured" not in said


def test_a_large_model_is_measured_where_that_is_asked_for(
    delta: Saved, export: Export, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state_lengths, "PRODUCTS", 0)
    report = prove(delta, export)
    assert report.stages[0].detail["states"]["after"] == {"not_measured": [40, 90]}
    assert "after 40 and 90 tokens was not measured, which takes long: --states does" in words(report, capsys)
    recipe, checkpoint = delta
    asked = Subject(recipe, {"model": checkpoint}, export(recipe, checkpoint), all_lengths=True)
    assert [each["tokens"] for each in measure_lengths(asked, "states")["lengths"]] == [40, 90]


def test_a_long_text_is_as_long_as_asked(delta: Saved) -> None:
    """Random tokens here, where there is no tokenizer."""
    _, checkpoint = delta
    assert len(long_text(checkpoint, 96, 1234)) == 1234
    assert set(long_text(checkpoint, 96, 1234)) <= set(range(96))
