"""What the terminal shows, at 80 columns and in a pipe."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coreai_recipes.report import console
from coreai_recipes.report.verdict import print_report


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stage(name: str, passed: bool | None, **detail: Any) -> dict[str, Any]:
    figures = {"psnr_db": 137.2, "snr_min_db": 115.1, "floor_db": None} if passed else {}
    return {"name": name, "passed": passed, "psnr_db": None, "snr_min_db": None, "floor_db": None, **figures} | {
        "detail": detail
    }


REPORT = {
    "stages": [
        stage("torch", True, weights="random", layers=" ".join(["a-layer-of-each-kind"] * 6)),
        stage("draft", None, skipped="no draft in this recipe"),
        stage("compressed", None, skipped="no compression in this recipe"),
    ]
}


def test_a_stage_is_a_line_and_its_detail_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detail was a column of 20 characters at 80, folded in the middle of words."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    print_report(REPORT)
    lines = terminal.getvalue().splitlines()
    assert lines[:4] == [
        "stage  verdict  PSNR dB  SNR_min dB  floor dB",
        "torch  passed     137.2       115.1         -",
        "    random: a-layer-of-each-kind a-layer-of-each-kind a-layer-of-each-kind",
        "    a-layer-of-each-kind a-layer-of-each-kind a-layer-of-each-kind",
    ]
    assert lines[4:6] == ["draft  skipped        -           -         -", "    no draft in this recipe"]
    assert "compressed" not in terminal.getvalue()  # while nothing compresses


def test_a_pipe_gets_no_padding_and_nothing_folded(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(REPORT)
    console.print_table(("what", ">bytes"), [("x" * 300, "1"), ("y", "22")], title="Title")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "    random: " + " ".join(["a-layer-of-each-kind"] * 6)
    assert lines[-4:] == ["Title", "what" + " " * 299 + "bytes", "x" * 300 + "       1", "y" + " " * 299 + "      22"]


def test_where_nothing_ran_no_format_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A Core AI bundle without its checkpoint was said not to be covered by Core ML's compiler."""
    print_report({"stages": [stage("torch", None, skipped="no checkpoint: pass one with --checkpoint SRC")]})
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "nothing was verified: no checkpoint: pass one with --checkpoint SRC"
    )


@pytest.mark.parametrize(
    ("seconds", "end"), [({}, ""), ({"linking": 0.01}, ""), ({"linking": 0.2}, "  (linking 0.2 s)")]
)
def test_a_build_names_the_steps_that_took_time(
    seconds: dict[str, float], end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a build that the cache served, an empty pair of parentheses was left."""
    from coreai_recipes.commands.build import _print_built

    _print_built(SimpleNamespace(notes=[], left_out=[], seconds=seconds, weights=None, path="dist/x", bytes=800_000))
    assert capsys.readouterr().out == f"dist/x  0.8 MB{end}\n"


def test_conversion_has_a_bar(tmp_path: Path) -> None:
    """`weights` stood at 100 % while fragments were converted, which takes longest."""
    from coreai_recipes import build

    steps: dict[str, tuple[int, int]] = {}

    def note(step: str, done: int, total: int) -> None:
        steps[step] = (done, total)

    tiny = Path(__file__).parents[1] / "checkpoints/tiny-llama"
    build("tiny-llama", tiny, tmp_path, verified=False, progress=note)
    assert steps.keys() == {"conversion", "weights"}
    assert all(done == total for done, total in steps.values())
