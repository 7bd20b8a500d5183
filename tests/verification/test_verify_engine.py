"""Stage `package_engine`, on packages that are exported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from verify_cases import Saved, save, without_rotary

from coreai_recipes.checkpoint import Checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import build_decoder, exported_form
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import MODEL
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.verification import StageResult, run_stages
from coreai_recipes.verification.stages import package_engine as engine
from coreai_recipes.verification.stages.package_float16 import Run
from coreai_recipes.verification.subject import Subject

PEAK = 24_000  # float16 holds it; its reciprocal is subnormal

Scaled = Callable[..., tuple[Recipe, Checkpoint, Path]]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Scaled:
    """A small Llama whose stream reaches PEAK, and its package at a scale."""
    return with_peak(PEAK, tmp_path_factory.mktemp("large"))


def with_peak(wanted: float, folder: Path) -> Scaled:
    pair = FAMILIES["llama"]()
    down: Any = pair.model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        # the others write so much less that the stream is this one's
        recipe, checkpoint = save(pair, folder / "small")
        down.mul_(1e4)
        peak = Subject(recipe, {MODEL: save(pair, folder / "larger")[1]}, None).measure_stream()
        down.mul_(wanted / peak)
    recipe, checkpoint = save(pair, folder / "large")
    fragments = FragmentCache(folder / "fragments")

    def export(scale: float, change: Callable[[Recipe], Recipe] = lambda same: same) -> tuple[Recipe, Checkpoint, Path]:
        data = change(recipe).model_dump()
        data["export"]["residual_scale"] = scale
        changed, package = Recipe.model_validate(data), folder / f"{scale:g}{change.__name__}" / "model.mlpackage"
        if not package.exists():
            decoder = build_decoder(changed, exported_form(changed))
            export_package([decoder], bind_weights(decoder, checkpoint), package, fragments)
        return changed, checkpoint, package

    return export


def still(recipe: Recipe) -> Recipe:
    return without_rotary(recipe, 0)


def test_where_transformers_float16_overflows_its_bfloat16_is_the_floor(tmp_path: Path) -> None:
    """Nothing was: transformers' NaN made a floor of -inf, and a package without a rotary passed."""
    large = with_peak(200_000, tmp_path)
    recipe, checkpoint, package = large(2.0**-5)
    (right,) = stages(recipe, checkpoint, package, "package_float16")
    assert right.detail["transformers_float16"]["psnr_db"] == "-inf"
    assert right.floor_db is not None
    assert right.floor_db == pytest.approx(right.detail["transformers_bfloat16"]["psnr_db"], abs=0.01)
    assert right.passed is True
    assert right.psnr_db is not None
    assert right.psnr_db > right.floor_db + 9
    (wrong,) = stages(recipe, checkpoint, large(2.0**-5, still)[2], "package_float16")
    assert wrong.passed is False
    assert wrong.detail["first_below"]["tensor"] == "logits"


def stages(recipe: Recipe, checkpoint: Checkpoint, package: Path, *names: str) -> list[StageResult]:
    return list(run_stages(recipe, checkpoint, package, stages=names).stages)


def test_a_stream_that_float16_holds_and_the_engine_does_not_fails_and_the_scale_mends_it(scaled: Scaled) -> None:
    halves, engine = stages(*scaled(1.0), "package_float16", "package_engine")
    assert halves.passed is True
    assert engine.passed is False
    assert engine.detail["nans"]
    assert "rsqrt" in engine.detail["overflowed"][0]
    wrong = engine.detail["first_below"]["tensor"]
    assert wrong == f"NaN in {engine.detail['nans'][0]}, infinity in {engine.detail['overflowed'][0]}"
    (remedy,) = engine.detail["remedies"]
    assert (remedy["field"], remedy["value"]) == ("export.residual_scale", 0.25)
    assert remedy["text"].endswith("and the engine's products end at 32,768, its divisors at 16,384)")
    (mended,) = stages(*scaled(0.25), "package_engine")
    assert (mended.passed, mended.detail["nans"], mended.detail["overflowed"]) == (True, [], [])
    assert mended.detail["engine"]["top_1"] > 0.9
    assert mended.detail["with_tables"]["habits"] == ["act-lut"]


def run_of(rows: list[int], *logits: tuple[float, ...]) -> Run:
    return Run("engine", torch.tensor(rows), torch.tensor(logits), [], [], [])


def test_tokens_that_float16_cannot_tell_apart_are_a_tie_and_others_are_another_answer() -> None:
    """The gap is held against float16's own error in that row, of both tokens."""
    halves = run_of([3, 4, 5], (1.0, 1.1, 0), (1.0, 1.3, 0), (2.0, 1.0, 0))
    theirs = torch.tensor([(1.0, 1.02, 0), (1.0, 1.29, 0), (2.0, 1.0, 0)])
    found = list(engine.parted(run_of([3, 4], (1.2, 1.1, 0), (1.4, 1.3, 0)), halves, theirs))
    assert [str(tie) for tie, _ in found] == [
        "position 3: float16 takes 1, the engine 0, scores apart by 0.1",
        "position 4: float16 takes 1, the engine 0, scores apart by 0.3",
    ]
    assert [tie.gap <= 2 * error for tie, error in found] == [True, False]


def test_the_float16_run_is_shared_and_its_rows_are_the_same(tiny_llama: Saved, tiny_package: Path) -> None:
    ran: list[str] = []
    report = run_stages(
        *tiny_llama,
        tiny_package,
        stages=["package_float16", "package_engine"],
        on_progress=lambda step, done, total: ran.append(step) if done == total else None,
    )
    assert report.passed, report.to_json()
    assert [step for step in ran if step.startswith("package_float16: ")] == [
        "package_float16: rounded",
        "package_float16: strict",
        "package_float16: engine",
        "package_float16: engine",
    ]
    halves, result = report.stages
    assert result.detail["engine"]["top_1"] > 0.9
    assert result.detail["engine"]["calls"] == halves.detail["rounded"]["calls"]
