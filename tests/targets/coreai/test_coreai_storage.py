"""Compressed weights in an .aimodel: every form as Core AI's own operations make it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from coreai_recipes.aimodel.folder import places_in
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe import load_resolved
from coreai_recipes.targets.coreai.exporter import export_package
from coreai_recipes.verification.run import run_stages

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"
FORMS = {
    "int8": ["kind=int8"],
    "int4 with offsets": ["kind=int4", "block=32", "symmetric=false"],
    "palettes of 3 bits": ["kind=palettize", "bits=3"],
}


@pytest.mark.parametrize("said", FORMS.values(), ids=FORMS)
def test_the_runtime_decompresses_what_the_recipe_stores(
    said: Sequence[str], tmp_path: Path, cache: FragmentCache
) -> None:
    overrides = ["export.format=coreai", *(f"compress.default.{field}" for field in said), "compress.calibration=null"]
    recipe = load_resolved("tiny-llama", overrides).recipe
    stacks, sources = build_stacks(recipe, exported_form(recipe)), {"model": open_checkpoint(CHECKPOINT)}
    asset = tmp_path / "model.aimodel"
    exported = export_package(stacks, bind_stacks(stacks, sources), asset, cache)
    sizes = {name: size for name, (_, size) in places_in(asset).items() if name.startswith("layers_0_mlp_up")}
    assert sum(sizes.values()) < 2 * 176 * 96 * 0.6
    assert exported.digests.keys() == {"model.aimodel/main.mlirb"}
    (stage,) = run_stages(recipe, sources, asset, stages=["package"], runtime="coreai", tokens=range(20)).stages
    assert stage.passed, stage.detail
    assert stage.psnr_db > 125
