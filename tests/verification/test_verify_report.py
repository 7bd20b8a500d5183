"""The report: its JSON, its verdict, what is skipped and what is required; the two figures."""

import json
import math
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from verify_cases import Saved

from coreai_recipes.errors import UserError
from coreai_recipes.recipe import load_resolved
from coreai_recipes.recipe.schema import DRAFT
from coreai_recipes.verification import Figures, Report, StageResult, run_stages
from coreai_recipes.verification.figures import compare, psnr, snr_min
from coreai_recipes.verification.report import judge, skip
from coreai_recipes.verification.stages import STAGES
from coreai_recipes.verification.stages.package_float16 import FLOAT16_PRODUCTS
from coreai_recipes.verification.stages.rotary import sample_positions
from coreai_recipes.verification.subject import Subject


def test_the_figures_follow_their_formulae() -> None:
    ref = torch.tensor([[100.0, 0.0], [3.0, 4.0]])
    x = torch.tensor([[100.0, 0.0], [3.0, 4.5]])
    assert psnr(ref, x) == pytest.approx(20 * math.log10(100) - 10 * math.log10(0.25 / 4))
    assert snr_min(ref, x) == pytest.approx(10 * math.log10(25 / 0.25))


def test_a_huge_token_hides_the_others_from_psnr_only() -> None:
    ref = torch.ones(50, 8)
    ref[0] = 25773.0
    x = ref.clone()
    x[7] += 0.08
    assert psnr(ref, x) > 100
    assert snr_min(ref, x) == pytest.approx(21.9, abs=0.1)


def test_identical_is_infinite_and_what_is_not_finite_is_minus_infinity() -> None:
    ref = torch.randn(4, 3)
    assert (psnr(ref, ref), snr_min(ref, ref)) == (math.inf, math.inf)
    for wrong in (math.nan, math.inf):
        x = ref.clone()
        x[2, 1] = wrong
        assert (psnr(ref, x), snr_min(ref, x)) == (-math.inf, -math.inf)
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert (snr_min(zero, zero), snr_min(zero, one), psnr(zero, one)) == (math.inf, -math.inf, -math.inf)


def test_shapes_that_differ_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"logits is \(2, 3\), its reference \(3, 2\)"):
        compare("logits", torch.zeros(3, 2), torch.zeros(2, 3))


def test_the_json_is_as_the_contract_says() -> None:
    report = Report(
        (StageResult("rotary", True, math.inf, math.inf, None, {"n": math.inf}), skip("package", "no package"))
    )
    assert json.loads(json.dumps(report.to_json(), allow_nan=False)) == {
        "passed": True,
        "stages": [
            {
                "name": "rotary",
                "passed": True,
                "psnr_db": "inf",
                "snr_min_db": "inf",
                "floor_db": None,
                "detail": {"n": "inf"},
            },
            {
                "name": "package",
                "passed": None,
                "psnr_db": None,
                "snr_min_db": None,
                "floor_db": None,
                "detail": {"skipped": "no package"},
            },
        ],
    }


def test_a_report_passes_when_one_ran_and_none_failed() -> None:
    good, bad, skipped = StageResult("torch", True), StageResult("torch", False), skip("torch", "why")
    assert Report((good, skipped)).passed
    assert not Report((good, bad)).passed
    assert not Report((skipped,)).passed
    assert Report(()).to_json() == {"passed": False, "stages": []}


def test_the_first_below_is_the_first_in_order_not_the_worst() -> None:
    figures = [Figures("a", 120, 90), Figures("b", 101, 79.9), Figures("c", 3, 3)]
    result = judge("torch", figures, 100, 80, {})
    assert (result.passed, result.psnr_db, result.snr_min_db, result.floor_db) == (False, 3, 3, 100)
    assert result.detail["first_below"] == {"tensor": "b", "psnr_db": 101, "snr_min_db": 79.9}


def test_without_a_checkpoint_nothing_is_verified(tiny_llama: Saved) -> None:
    report = run_stages(tiny_llama[0], None, None, require=["rotary"])
    missing = "no checkpoint: pass one with --checkpoint SRC"
    skipped = [stage.skipped for stage in report.stages]
    assert skipped == [missing, missing, "no package", "no package", "no package", missing, missing, missing]
    assert report.stages[0].passed is False, "required, and skipped"
    assert report.stages[1].passed is None
    assert not report.passed
    assert report.nothing_ran == f"nothing was verified: {missing}; no package"


def test_a_required_stage_runs_though_another_was_asked_for(tiny_llama: Saved) -> None:
    report = run_stages(*tiny_llama, None, stages=["rotary"], require=["package"])
    assert [(stage.name, stage.passed) for stage in report.stages] == [("rotary", True), ("package", False)]
    assert not report.passed


def test_unknown_stages_are_refused_with_those_there_are(tiny_llama: Saved) -> None:
    with pytest.raises(UserError) as refused:
        run_stages(*tiny_llama, None, stages=["torhc"], require=["all"])
    there_are = (
        "the stages are rotary, torch, package, package_float16, package_engine, decompressed, tokenizer, draft, "
        "adapters, compressed"
    )
    assert refused.value.problems == (f"there is no stage torhc; {there_are}", f"there is no stage all; {there_are}")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "0 tokens were given; 1 to 256 are required, the recipe's context"),
        ([0] * 257, "257 tokens were given; 1 to 256 are required, the recipe's context"),
        ([5, 512], "the token 512 is not in the vocabulary of 512"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens: list[int], message: str, tiny_llama: Saved) -> None:
    with pytest.raises(UserError) as refused:
        run_stages(*tiny_llama, None, tokens=tokens)
    assert str(refused.value) == message


@pytest.mark.parametrize("context", [2, 64, 100, 2048, 131072])
def test_positions_are_sampled_from_the_first_to_the_last(context: int) -> None:
    positions = sample_positions(context).tolist()
    assert (positions[0], positions[-1], len(set(positions))) == (0, context - 1, len(positions))
    assert len(positions) <= 300


def test_importing_verify_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'coremltools'}"
    code = f"import sys, coreai_recipes.verification; print({heavy} & sys.modules.keys())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "set()\n"


def test_the_figures_of_many_positions_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 positions of a vocabulary of a million, float64 all at once was 8 GB."""
    ref = torch.randn(7, 5)
    x = ref + 1e-3 * torch.randn(7, 5)
    whole = psnr(ref, x), snr_min(ref, x)
    monkeypatch.setattr("coreai_recipes.verification.figures.BLOCK_NUMBERS", 11)
    assert (psnr(ref, x), snr_min(ref, x)) == pytest.approx(whole)


def test_a_layer_that_does_not_fit_is_refused_before_it_is_read(
    tiny_llama: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coreai_recipes.verification.run.free_bytes", lambda: 1e5)
    with pytest.raises(UserError) as caught:
        run_stages(*tiny_llama, None, stages=["torch"])
    assert str(caught.value) == (
        "tiny-llama: its largest layer and its logits take 0.0 GB in float32, ours beside transformers'; "
        "0.0 GB are free"
    )
    assert run_stages(*tiny_llama, None, stages=["rotary"]).passed


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_the_module_of_its_name(name: str) -> None:
    assert name == import_module(f"coreai_recipes.verification.stages.{name}").NAME


@pytest.mark.parametrize(
    ("changes", "proofs"),
    [
        ({}, "torch package package_float16 package_engine"),
        ({"reference": None}, "package"),
        ({"reference": None, "sources": {DRAFT: "given"}}, "package draft"),
        ({"compresses": True}, "torch package package_float16 package_engine compressed"),
        ({"unmerged": ["style"]}, "torch package package_float16 package_engine adapters"),
    ],
)
def test_a_build_is_proven_by_the_stages_that_can_run_on_it(changes: dict[str, Any], proofs: str) -> None:
    asked = {"reference": "given", "sources": {}, "compresses": False, "unmerged": []} | changes
    said = {name: asked.pop(name) for name in ("reference", "unmerged")}
    recipe = SimpleNamespace(export=SimpleNamespace(format="coreml"), **said)
    subject: Any = SimpleNamespace(recipe=recipe, runtime="evaluator", **asked)
    assert [name for name, stage in STAGES.items() if stage.proves(subject)] == proofs.split()


@pytest.mark.parametrize(
    ("overrides", "products", "proves"),
    [([], FLOAT16_PRODUCTS, True), (["export.outputs=ids"], FLOAT16_PRODUCTS, False), ([], 1, False)],
)
def test_an_asset_is_proven_without_the_float16_logits_that_its_runtime_cannot_give(
    overrides: list[str], products: float, proves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ids, and with a context too long for Linux, every build failed by a stage that it skips."""
    monkeypatch.setattr("coreai_recipes.verification.stages.package_float16.FLOAT16_PRODUCTS", products)
    recipe = load_resolved("tiny-llama", ["export.format=coreai", *overrides]).recipe
    assert STAGES["package_float16"].proves(Subject(recipe, {}, None, runtime="coreai")) == proves
