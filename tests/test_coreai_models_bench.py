"""The benches beside coreai-models' own exporter: what they say of assets and runs, and what they refuse."""

import copy
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import __main__ as bench
from bench.child import Finished
from bench.coreai_models_dynamic import differing
from bench.suite.coreai_models import EMPTY, FULL, THEIRS, describe

SIGNATURE: dict[str, Any] = {
    "inputs": {"input_ids": ("int32", (1, -1)), "position_ids": ("int32", (1, -1))},
    "outputs": {"logits": ("float16", (1, -1, 160))},
    "states": {"keyCache": ("float16", (3, 1, 2, -1, 16)), "valueCache": ("float16", (3, 1, 2, -1, 16))},
}


def test_equal_signatures_differ_in_nothing() -> None:
    assert differing(SIGNATURE, copy.deepcopy(SIGNATURE)) == []


def test_another_order_of_inputs_and_a_closed_size_are_told() -> None:
    swapped, closed = copy.deepcopy(SIGNATURE), copy.deepcopy(SIGNATURE)
    swapped["inputs"] = dict(reversed(swapped["inputs"].items()))
    closed["states"]["keyCache"] = ("float16", (3, 1, 2, 4096, 16))
    (told,) = differing(SIGNATURE, swapped)
    assert told.startswith("inputs: ")
    (told,) = differing(SIGNATURE, closed)
    assert told.startswith("states: ")
    assert "4096" in told


def test_ratios_are_of_medians() -> None:
    def finished(processor: float, peak: int) -> Finished:
        return Finished(2 * processor, processor, peak, {}, "")

    runs = {
        EMPTY: [finished(seconds, 10**9) for seconds in (9.0, 5.0, 4.0)],
        FULL: [finished(4.0, 5 * 10**8)],
        THEIRS: [finished(50.0, 6 * 10**9)],
    }
    assert describe(runs, 28).rows == [
        (EMPTY, "3", "5.0", "10.0", "1.00", "10.0", "6.0"),
        (FULL, "1", "4.0", "8.0", "0.50", "12.5", "12.0"),
        (THEIRS, "1", "50.0", "100.0", "6.00", "1.0", "1.0"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "coreai_models: needs --coreai-models CHECKOUT"),
        (["--coreai-models", "."], "is no checkout of coreai-models: it has no python/src/coreai_models"),
    ],
)
def test_a_checkout_is_needed_and_looked_at_first(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(bench.main)
    result = CliRunner().invoke(app, ["coreai_models", *options], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())
