"""`evaluate` and `compress` with a scheduler give what they give without one."""

import json
from collections.abc import Callable
from pathlib import Path

from zoos import TINY

Run = Callable[..., tuple[int, str, str]]
LOSSY = "compress={default: {kind: palettize, bits: 4}, calibration: null}"


def test_texts_that_workers_evaluate_add_up_to_the_same(
    tmp_path: Path, tiny_bundle: Path, run: Run, inside: str
) -> None:
    for name, words in (("one", "The moon turns around the earth. "), ("two", "A day has twenty-four hours. ")):
        (tmp_path / name).write_text(4 * words)
    asked = ("evaluate", tiny_bundle, tmp_path / "one", tmp_path / "two", "--checkpoint", TINY, "--json")
    alone, spread = run(*asked), run(*asked, "--scheduler", inside)
    assert alone[0] == 0
    assert spread[:2] == alone[:2]
    assert len(json.loads(alone[1])["texts"]) == 2


def test_matrices_that_workers_measure_get_the_same_forms(run: Run, inside: str) -> None:
    asked = ("compress", "tiny-llama", "--checkpoint", TINY, "--set", LOSSY, "--budget", "5", "--json")
    asked += ("--set", "export.context=64")
    alone, spread = run(*asked), run(*asked, "--scheduler", inside)
    assert alone[0] == 0, alone[2]
    assert spread[:2] == alone[:2]
