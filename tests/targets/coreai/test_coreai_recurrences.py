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
