"""Layers that carry a recurrence's state, in an .aimodel: by Apple's runtime against the module."""

from pathlib import Path

import pytest
from small_delta import save_delta, small_delta

from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.targets.coreai.exporter import export_package
from coreai_recipes.verification.run import run_stages


@pytest.mark.parametrize("state", ["float16", "two_float16"])
def test_the_gated_delta_rule_runs_in_chunks_and_by_steps(state: str, tmp_path: Path, cache: FragmentCache) -> None:
    recipe, checkpoint = save_delta(small_delta(), tmp_path / "checkpoint", format="coreai", recurrent_state=state)
    stacks, sources = build_stacks(recipe, exported_form(recipe)), {"model": checkpoint}
    asset = tmp_path / "model.aimodel"
    export_package(stacks, bind_stacks(stacks, sources), asset, cache)
    stages = ["package"] if state == "two_float16" else ["package", "package_float16"]
    package, *half = run_stages(recipe, sources, asset, stages=stages, runtime="coreai", tokens=range(40)).stages
    assert package.passed, package.detail
    assert package.psnr_db > 110
    for stage in half:  # whose floor is of transformers with its states in float16 between the calls too
        alone = stage.detail["states"]
        assert 60 < alone["psnr_db"] < 100
        assert stage.floor_db == pytest.approx(alone["transformers"]["float16_psnr_db"] - 3, abs=0.01)


def test_rows_since_a_commit_run_in_an_asset(tmp_path: Path, cache: FragmentCache) -> None:
    """40 positions on a buffer of 16 rows: states are committed in between, and a score goes three positions back."""
    functions = {"prefill": 16, "score": 4}
    recipe, checkpoint = save_delta(
        small_delta(), tmp_path / "checkpoint", format="coreai", buffer=16, functions=functions
    )
    stacks, sources = build_stacks(recipe, exported_form(recipe)), {"model": checkpoint}
    asset = tmp_path / "model.aimodel"
    exported = export_package(stacks, bind_stacks(stacks, sources), asset, cache)
    assert list(exported.packages[0].signatures) == ["decode", "prefill", "score", "commit"]
    (package,) = run_stages(recipe, sources, asset, stages=["package"], runtime="coreai", tokens=range(40)).stages
    assert package.passed, package.detail
    assert package.psnr_db > 110
    assert package.detail["calls"].endswith("score 3 of 4 from position 37")
