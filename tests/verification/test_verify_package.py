"""Stages `package` and `package_float16`, on packages that are exported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from verify_cases import Export, Saved, change, save, with_kind, without_rotary

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe
from coreai_recipes.verification import StageResult, run_stages
from coreai_recipes.verification.calls import FunctionCall, describe_calls, plan_calls
from coreai_recipes.verification.stages import package_float16 as float16


def run(stage: str, recipe: Recipe, checkpoint: Any, package: Path) -> StageResult:
    return run_stages(recipe, checkpoint, package, stages=[stage]).stages[0]


def test_the_trained_models_package_passes_every_stage(tiny_llama: Saved, tiny_package: Path) -> None:
    seen: dict[str, list[int]] = {}
    report = run_stages(
        *tiny_llama, tiny_package, on_progress=lambda stage, done, total: seen.setdefault(stage, []).append(done)
    )
    assert report.passed, report.to_json()
    assert [stage.passed for stage in report.stages] == [True, True, True, True, True, True, None, None]
    package, halves = report.stages[2:4]
    # embedding, four layers, logits
    assert package.detail["tensors"] == 6
    assert package.detail["calls"] == "prefill 16, " * 10 + "prefill 15 of 16, 25 x decode"
    assert halves.floor_db == pytest.approx(halves.detail["transformers_float16"]["psnr_db"] - 3, abs=0.01)
    assert halves.detail["overflowed"] == []
    assert 0.9 <= halves.detail["strict"]["top_1"] <= 1
    assert {"torch", "package", "package_float16: strict"} <= seen.keys()


def test_the_layer_whose_rotary_the_package_lost_is_named(tiny_llama: Saved, export: Export) -> None:
    recipe, checkpoint = tiny_llama
    result = run("package", recipe, checkpoint, export(without_rotary(recipe, 2), checkpoint))
    assert result.passed is False
    first = result.detail["first_below"]
    assert first["tensor"] == "layers.2.output"
    assert first["snr_min_db"] < 40


@pytest.mark.parametrize("family", ["qwen3", "mistral", "qwen2"])
def test_a_small_package_equals_its_decoder(family: str, saved: Callable[[str], Saved], export: Export) -> None:
    """Rings wrap (window 7), score steps back over them, and padding leaves no trace."""
    recipe, checkpoint = saved(family)
    result = run("package", recipe, checkpoint, export(recipe, checkpoint))
    assert result.passed, result.to_json()
    assert (
        result.detail["calls"] == "prefill 16, prefill 16, prefill 15 of 16, 17 x decode, score 4 of 5 from position 60"
    )
    assert result.detail.get("wrapped") == (None if family == "qwen3" else "every window")


def test_a_wrong_window_in_the_package_is_found(saved: Callable[[str], Saved], export: Export) -> None:
    recipe, checkpoint = saved("mistral")
    package = export(with_kind(recipe, "sliding", attention={"window": 6}), checkpoint)
    assert run("package", recipe, checkpoint, package).detail["first_below"]["tensor"] == "layers.0.output"


def test_an_overflow_in_float16_fails_the_stage(tmp_path: Path, export: Export) -> None:
    """A residual stream beyond 65504: float32 is right, float16 is not."""
    pair = FAMILIES["llama"]()
    with torch.no_grad():
        pair.model.model.layers[1].mlp.down_proj.weight.mul_(3e4)
    recipe, checkpoint = save(pair, tmp_path)
    package = export(recipe, checkpoint)
    report = run_stages(recipe, checkpoint, package, stages=["package", "package_float16"])
    in_float32, halves = report.stages
    assert in_float32.passed is True
    assert halves.passed is False
    assert halves.detail["overflowed"]
    assert halves.detail["first_below"]["tensor"] == halves.detail["overflowed"][0]


def test_more_than_three_decibels_below_transformers_fails(
    tiny_llama: Saved, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float16, "ALLOWED_LOSS_DB", -30.0)
    result = run("package_float16", *tiny_llama, tiny_package)
    assert result.passed is False
    assert result.detail["first_below"]["tensor"] == "logits"


def test_a_package_needs_no_reference(tiny_llama: Saved, tiny_package: Path) -> None:
    recipe, checkpoint = tiny_llama
    own = Recipe.model_validate(recipe.model_dump() | {"reference": None})
    report = run_stages(own, checkpoint, tiny_package)
    reason = "the recipe has no reference"
    assert [stage.skipped for stage in report.stages] == [reason, reason, None, reason, reason, None, reason, reason]
    assert report.passed


def test_streamed_weights_give_the_same_figures(
    tiny_llama: Saved, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = run("package", *tiny_llama, tiny_package)
    monkeypatch.setattr("coreai_recipes.verification.memory.free_bytes", lambda: 1e5)
    streamed = run("package", *tiny_llama, tiny_package)
    assert streamed.detail["weights"] == "streamed"
    assert streamed.passed
    assert streamed.psnr_db == pytest.approx(held.psnr_db, abs=6)


def test_a_checkpoint_with_more_layers_than_the_recipe_is_refused(tiny_llama: Saved, tiny_package: Path) -> None:
    recipe, checkpoint = tiny_llama
    other = change(recipe, layers=["full"] * 3)
    with pytest.raises(CheckpointError, match=r"extra: the recipe has no layers\.3"):
        run("package", other, checkpoint, tiny_package)


@pytest.mark.parametrize("length", [1, 2, 5, 16, 17, 40, 200])
@pytest.mark.parametrize("size", [2, 7, 16, 64])
def test_the_calls_cover_the_sequence_once(length: int, size: int) -> None:
    calls = plan_calls({"decode": 1, "prefill": size}, length, 16)
    places = [call.position + i for call in calls for i in range(call.count)]
    assert places == list(range(length))
    assert all(1 <= call.count <= call.queries for call in calls)
    assert length < 8 or sum(call.function == "decode" for call in calls) >= min(16, length // 4)


def test_calls_are_told_in_words() -> None:
    calls = [
        FunctionCall("prefill", 0, 8, 8),
        FunctionCall("prefill", 8, 3, 8),
        FunctionCall("decode", 11, 1, 1),
        FunctionCall("score", 8, 4, 5),
    ]
    assert describe_calls(calls) == "prefill 8, prefill 3 of 8, 1 x decode, score 4 of 5 from position 8"
