"""Compressed weights in an .aimodel: every form as Core AI's own operations make it, to the bit."""

import errno
import platform
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from math import inf
from pathlib import Path

import pytest
import torch

from coreai_recipes.aimodel.dense import is_compressed
from coreai_recipes.aimodel.folder import places_in
from coreai_recipes.aimodel.rewriting import rewrite
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import BundleError
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe import Recipe, load_resolved
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.coreai_process import DENSE, CoreAIProcess
from coreai_recipes.running.program import open_engine
from coreai_recipes.targets.coreai.exporter import export_package
from coreai_recipes.verification.report import StageResult
from coreai_recipes.verification.run import run_stages
from coreai_recipes.verification.stages import STAGES
from coreai_recipes.verification.stages.decompressed import Calls, differing, run_calls
from coreai_recipes.verification.subject import Subject

pytestmark = pytest.mark.xdist_group(__name__)

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"
FORMS = {
    "int8": ["kind=int8"],
    "int4 with offsets": ["kind=int4", "block=32", "symmetric=false"],
    "palettes of 3 bits": ["kind=palettize", "bits=3"],
}


SOURCES = {"model": open_checkpoint(CHECKPOINT)}


GEMMA = {"model": open_checkpoint(Path(__file__).parents[3] / "examples/gemma4-tiny")}


def recipe_of(said: Sequence[str]) -> Recipe:
    stored = (f"compress.default.{field}" for field in said)
    return load_resolved("tiny-llama", ["export.format=coreai", *stored, "compress.calibration=null"]).recipe


def stage_of(name: str, recipe: Recipe, asset: Path) -> StageResult:
    (stage,) = run_stages(recipe, SOURCES, asset, stages=[name], runtime="coreai", tokens=range(20)).stages
    return stage


Made = Callable[[str, Callable[[Path], object]], Path]


def asset_of(form: str, made: Made, cache: FragmentCache) -> Path:
    """The asset of tiny-llama in that form, which every test of it shares."""
    recipe = recipe_of(FORMS[form])

    def export(folder: Path) -> None:
        folder.mkdir(parents=True)
        stacks = build_stacks(recipe, exported_form(recipe))
        exported = export_package(stacks, bind_stacks(stacks, SOURCES), folder / "model.aimodel", cache)
        assert exported.digests.keys() == {"model.aimodel/main.mlirb"}

    return made(f"tiny-llama {form}", export) / "model.aimodel"


@pytest.mark.parametrize("form", FORMS)
def test_the_runtime_decompresses_what_the_recipe_stores(form: str, made: Made, cache: FragmentCache) -> None:
    asset = asset_of(form, made, cache)
    sizes = {name: size for name, (_, size) in places_in(asset).items() if name.startswith("layers_0_mlp_up")}
    assert sum(sizes.values()) < 2 * 176 * 96 * 0.6
    stage = stage_of("package", recipe_of(FORMS[form]), asset)
    assert stage.passed, stage.detail
    assert stage.psnr_db > 125


@pytest.mark.skipif(platform.system() == "Darwin", reason="a Mac's runtime runs the asset itself")
def test_a_bundle_runs_by_its_twin_with_weights_decompressed_once(made: Made, cache: FragmentCache) -> None:
    form = "palettes of 3 bits"
    asset, recipe = asset_of(form, made, cache), recipe_of(FORMS[form])
    assert is_compressed(asset)
    engine = open_engine(asset, "coreai", context=recipe.export.context)
    assert isinstance(engine, CoreAIProgram)
    assert engine.signatures["decode"]["outputs"]["logits"][0] == "float32"
    assert not is_compressed(engine._process.folder / DENSE)
    assert stage_of("package", recipe, asset).detail["decompressed"] == "once"


def test_an_asset_equals_its_dense_twin_to_the_bit(made: Made, cache: FragmentCache) -> None:
    form = "int4 with offsets"
    stage = stage_of("decompressed", recipe_of(FORMS[form]), asset_of(form, made, cache))
    assert stage.passed, stage.detail
    assert stage.psnr_db == inf
    assert stage.detail["program"] == "the asset as it is"
    assert (stage.detail["weights_compared"], stage.detail["values_compared"]) == (29, 3)


def test_a_table_in_int8_with_offsets_is_decompressed_to_the_bit(cache: FragmentCache, tmp_path: Path) -> None:
    """The runtime rounds twice where such a weight has two axes: the table is made with four, and was off by a unit of
    float16 in more than half of its numbers."""
    rule = "compress.rules=[{match: embedding, kind: int8, block: 32, symmetric: false}]"
    recipe = load_resolved("tiny-llama", ["export.format=coreai", "export.functions.prefill=4", rule]).recipe
    stacks = build_stacks(recipe, exported_form(recipe))
    asset = tmp_path / "model.aimodel"
    export_package(stacks, bind_stacks(stacks, SOURCES), asset, cache)

    stage = stage_of("decompressed", recipe, asset)
    assert stage.passed, stage.detail
    assert stage.detail["weights_compared"] == 1


def test_one_index_and_one_entry_of_a_palette_are_seen(made: Made, cache: FragmentCache, tmp_path: Path) -> None:
    form = "palettes of 3 bits"
    asset, recipe = asset_of(form, made, cache), recipe_of(FORMS[form])
    changed = shutil.copytree(asset, tmp_path / "model.aimodel")
    program = bytearray((changed / "main.mlirb").read_bytes())
    for part in ("layers_1_mlp_up_weight_indices", "layers_2_mlp_up_weight_lut"):
        program[places_in(asset)[part][0]] ^= 1
    (changed / "main.mlirb").write_bytes(program)
    (changed / "main.hash").write_bytes(sha256(program).digest())

    stage = stage_of("decompressed", recipe, changed)
    assert stage.passed is False
    assert stage.detail["strangers"] == ["layers.1.mlp.up", "layers.2.mlp.up"]
    assert stage.detail["first_below"]["tensor"] == "layers.1.mlp.up, which is not as the recipe stores it"
    assert 40 < stage.psnr_db < inf

    subject = Subject(recipe, SOURCES, asset, runtime="coreai")
    ref, values = run_calls(subject, asset, False, False).values, run_calls(subject, changed, False, True).values
    assert differing(ref, values)[0].tensor == "logits of prefill at position 0"
    assert not differing(ref, ref)


def test_one_number_of_a_table_beside_an_asset_is_seen(cache: FragmentCache, tmp_path: Path) -> None:
    """A table's rows are no constant of the program: they ended the stage in a KeyError, so that no `--bits` built
    gemma4-tiny."""
    rule = "compress.rules=[{match: per_layer_table, kind: int8, block: 32}]"
    recipe = load_resolved(
        "gemma4-tiny", ["export.format=coreai", "export.functions.score=null", "draft=null", rule]
    ).recipe
    stacks = build_stacks(recipe, exported_form(recipe))
    asset, table = tmp_path / "model.aimodel", tmp_path / "per_layer_table.bin"
    export_package(stacks, bind_stacks(stacks, GEMMA), asset, cache)
    values = bytearray(table.read_bytes())
    values[1000] ^= 1
    table.write_bytes(values)

    (stage,) = run_stages(recipe, GEMMA, asset, stages=["decompressed"], runtime="coreai", tokens=range(20)).stages
    assert stage.passed is False
    assert (stage.detail["weights_compared"], stage.detail["strangers"]) == (1, ["per_layer_table"])
    assert 95 < stage.psnr_db < inf  # one step in one of 524,288 numbers: the others are equal to the bit


def test_what_fails_while_a_twin_is_written_is_what_is_said(made: Made, cache: FragmentCache, tmp_path: Path) -> None:
    """A full disk was said to be `cannot close exported pointers exist`."""

    def choose(name: str, content: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        rewrite(asset_of("int8", made, cache), tmp_path / "twin.aimodel", lambda text: text, choose)


def test_a_full_folder_for_temporary_files_is_named(made: Made, cache: FragmentCache) -> None:
    """A process that writes to a mapped file there ends by a signal: its status was all that was said."""
    process = CoreAIProcess(asset := asset_of("int8", made, cache))
    process._process.send_signal(signal.SIGBUS)
    with pytest.raises(BundleError) as caught:
        process.ask("weights")
    assert str(caught.value) == (
        f"{asset}: no space for temporary files in {tempfile.gettempdir()}; free some, or set TMPDIR to another folder"
    )


def test_nothing_finite_is_nothing_equal() -> None:
    overflowed = {"logits": torch.full((1, 3), inf)}
    assert differing(overflowed, overflowed)[0].tensor == "logits, of which nothing is finite"
    with pytest.raises(ValueError, match="no function was called"):
        Calls([], {"state kv_full": torch.zeros(1)})


def test_where_nothing_is_compressed_the_stage_says_so(made: Made, cache: FragmentCache) -> None:
    """Rules that leave every matrix in float16, as `--bits` of a small model has them, passed with no weight held."""
    rule = "compress.rules=[{match: '*', kind: float16}]"
    recipe = load_resolved("tiny-llama", ["export.format=coreai", "compress.default.kind=int8", rule]).recipe
    asset = asset_of("int8", made, cache)
    assert not STAGES["decompressed"].proves(Subject(recipe, SOURCES, asset, runtime="coreai"))
    assert stage_of("decompressed", recipe, asset).skipped == (
        "nothing is compressed: the recipe leaves every matrix in float16"
    )
