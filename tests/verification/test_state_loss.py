"""What a model loses by its states alone: the float16 of both sides has float16 states."""

from pathlib import Path

import pytest
import torch
from figures import psnr
from small_delta import save_delta, small_delta
from verify_cases import Export, Saved

from coreai_recipes.report.verdict import print_report
from coreai_recipes.verification import run_stages
from coreai_recipes.verification.calls import FunctionCall
from coreai_recipes.verification.state_loss import in_float16, recurrences, rounded_before, their_logits
from coreai_recipes.verification.subject import Subject


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save_delta(small_delta(), tmp_path_factory.mktemp("delta"))


def test_only_the_states_of_recurrences_are_rounded(delta: Saved) -> None:
    assert recurrences(delta[0]) == {"recurrent_delta": None}
    given = {"recurrent_delta": torch.tensor([1 / 3]), "conv_delta": torch.tensor([1 / 3])}
    kept = in_float16(given, recurrences(delta[0]))
    assert float(kept["recurrent_delta"]) == float(torch.tensor(1 / 3).half())
    assert float(kept["conv_delta"]) == float(torch.tensor(1 / 3))


def test_two_halves_are_rounded_as_their_sum() -> None:
    """The second is what the first has lost: in float32 that is nothing yet."""
    given = {"recurrent_delta": torch.tensor([1 / 3]), "recurrent_low_delta": torch.tensor([0.0])}
    kept = in_float16(given, {"recurrent_delta": "recurrent_low_delta"})
    assert all(torch.equal(each, each.half().float()) for each in kept.values())
    assert abs(float(sum(kept.values())) - 1 / 3) < 2**-22


def test_transformers_is_given_its_states_back_in_float16(delta: Saved) -> None:
    """In one call nothing is carried, and nothing lost; in many calls its states are."""
    recipe, checkpoint = delta
    subject = Subject(recipe, {"model": checkpoint}, None, tuple(range(1, 60)))
    ref = subject.reference()
    in_one = their_logits(subject, [FunctionCall("prefill", 0, 59, 59)], torch.float32)
    step_by_step = their_logits(subject, [FunctionCall("decode", each, 1, 1) for each in range(59)], torch.float32)
    assert psnr(ref, in_one) > 120
    assert 60 < psnr(ref, step_by_step) < 110


@pytest.mark.parametrize(("functions", "commits"), [({}, [16, 32]), ({"score": 4}, [16, 29, 42])], ids=["", "score"])
def test_they_are_rounded_where_the_package_commits(
    functions: dict[str, int], commits: list[int], tmp_path: Path
) -> None:
    """With a score, a commit leaves room for three positions to go back: 13, 26 and 39 are committed to."""
    recipe, _ = save_delta(small_delta(), tmp_path, buffer=16, functions={"prefill": 16, **functions})
    rounded = rounded_before(recipe, [FunctionCall("decode", each, 1, 1) for each in range(48)])
    assert [position for position, is_rounded in enumerate(rounded) if is_rounded] == commits


def test_the_stage_states_what_the_states_lose(
    delta: Saved, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, checkpoint = delta
    report = run_stages(recipe, checkpoint, export(recipe, checkpoint), stages=["package_float16"])
    (stage,) = report.stages
    found = stage.detail["states"]
    theirs = found["transformers"]
    # the states alone lose less than everything in float16 does, and what they lose is what transformers' do
    assert found["psnr_db"] > stage.psnr_db + 3
    assert abs(found["psnr_db"] - theirs["psnr_db"]) < 6
    assert stage.floor_db == pytest.approx(theirs["float16_psnr_db"] - 3, abs=0.01)
    assert theirs["float16_psnr_db"] != stage.detail["transformers_float16"]["psnr_db"]
    print_report(report.to_json())
    words = " ".join(capsys.readouterr().out.split())
    assert f"its states in float16, all else in float32: {found['psnr_db']:.1f} dB" in words
    assert f"transformers' float16 with float16 states {theirs['float16_psnr_db']:.1f} dB" in words
