"""A package that answers in a process of its own, while transformers computes in this one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from verify_cases import Saved

from coreai_recipes import child_process
from coreai_recipes.recipe.schema import MODEL
from coreai_recipes.verification import answers, run
from coreai_recipes.verification.answers import Answered, Asked, Beside
from coreai_recipes.verification.run import run_on
from coreai_recipes.verification.scale import Peaks, peaks_of
from coreai_recipes.verification.subject import Subject

STAGES = ("package", "package_float16", "package_engine")
POSITIONS = 16


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model is too small for two processes."""
    monkeypatch.setattr(run, "SMALL_BYTES", 0)
    monkeypatch.setattr(answers, "LEAST_BYTES", 0)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was asked of another process, and whether it answered."""
    found: list[tuple[str, bool]] = []
    take = Beside.take

    def noted(self: Beside, asked: Asked, done: Any) -> Answered | None:
        answer = take(self, asked, done)
        found.append((asked.mode, answer is not None))
        return answer

    monkeypatch.setattr(Beside, "take", noted)
    return found


def prove(saved: Saved, package: Path, threads: int) -> tuple[dict[str, Any], Peaks, list[tuple[str, int]]]:
    """The report, the peaks that stage `package` measures, and the package's progress."""
    recipe, checkpoint = saved
    told: list[tuple[str, int]] = []
    subject = Subject(
        recipe,
        {MODEL: checkpoint},
        package,
        Subject(recipe, {MODEL: checkpoint}, package).tokens.sequence[:POSITIONS],
        on_progress=lambda step, done, total: told.append((step, done)),
        peaks=peaks_of(recipe, package),
    )
    torch.set_num_threads(threads)
    report = run_on(subject, STAGES).to_json()
    assert torch.get_num_threads() == threads
    assert subject.beside is None
    assert subject.peaks is not None
    return report, subject.peaks, [each for each in told if each[0].startswith("package")]


def test_a_process_of_its_own_gives_the_same_report_peaks_and_progress(
    tiny_llama: Saved, tiny_package: Path, taken: list[tuple[str, bool]]
) -> None:
    alone = prove(tiny_llama, tiny_package, threads=1)
    assert taken == []
    beside = prove(tiny_llama, tiny_package, threads=2)
    assert taken == [(mode, True) for mode in ("float32", "rounded", "strict", "engine", "engine")]
    assert beside == alone
    assert alone[1].peak > 0


def test_what_a_process_fails_to_answer_is_asked_here(
    tiny_llama: Saved, tiny_package: Path, taken: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "COMMAND", "raise SystemExit(1)  # {module} {function}")
    report, peaks, _ = prove(tiny_llama, tiny_package, threads=2)
    assert report["stages"][0]["passed"]
    assert peaks.peak > 0
    assert {answered for _, answered in taken} == {False}


def test_one_thread_is_not_shared_by_two_processes(tiny_llama: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, checkpoint = tiny_llama
    monkeypatch.setattr(answers, "Beside", None)
    subject = Subject(recipe, {MODEL: checkpoint}, Path("model.mlpackage"))
    with answers.asked_beside(subject, lambda: pytest.fail("nobody is asked")):
        assert subject.beside is None
