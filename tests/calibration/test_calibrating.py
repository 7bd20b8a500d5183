"""A text through the decoder, and packages whose weights were fitted to it."""

import shutil
from pathlib import Path

import pytest
import torch

from coreai_recipes.bundle.building import build
from coreai_recipes.calibration.calibrating import calibrate
from coreai_recipes.calibration.passing import TextPass, folded_decoder
from coreai_recipes.calibration.text import read_windows
from coreai_recipes.calibration.threads import threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import build_decoder, exported_form
from coreai_recipes.errors import UserError
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.recipe.schema import Calibration
from coreai_recipes.storage.compression import is_matrix
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.layout import FILE, WeightLayout
from coreai_recipes.storage.parameters import stored_parameters
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.verification import StageResult, run_stages

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
PALETTES = ["compress.default={kind: palettize, bits: 4}", "export.residual_scale=0.5"]
RULES = '[{match: layers.1.mlp.down, kind: int4, block: 16, symmetric: false}, {match: "layers.2.*", bits: 3}]'


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("tiny-llama", [*PALETTES, f"compress.rules={RULES}"])


@pytest.fixture(scope="module")
def windows(recipe: Recipe, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoint.write_tokenizer(folder)
    return read_windows(Calibration(tokens=4096), folder, recipe.export.context)[0]


@pytest.fixture(scope="module")
def fitted(
    recipe: Recipe, checkpoint: Checkpoint, windows: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Fitted]:
    return calibrate(recipe, checkpoint, windows, tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def cache(fragments: Path) -> FragmentCache:
    return FragmentCache(fragments)


def package_of(
    recipe: Recipe, checkpoint: Checkpoint, cache: FragmentCache, place: Path, fitted: dict[str, Fitted] | None
) -> Path:
    decoder = build_decoder(recipe, exported_form(recipe))
    export_package([decoder], bind_weights(decoder, checkpoint), place / "model.mlpackage", cache, fitted=fitted)
    return place / "model.mlpackage"


@pytest.fixture(scope="module")
def package(
    recipe: Recipe,
    checkpoint: Checkpoint,
    cache: FragmentCache,
    fitted: dict[str, Fitted],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return package_of(recipe, checkpoint, cache, tmp_path_factory.mktemp("package"), fitted)


def run(recipe: Recipe, checkpoint: Checkpoint, package: Path | None, *stages: str) -> list[StageResult]:
    return list(run_stages(recipe, checkpoint, package, stages=stages).stages)


def test_a_fitted_package_is_verified_with_its_own_weights_and_loses_less(
    recipe: Recipe, checkpoint: Checkpoint, cache: FragmentCache, package: Path, tmp_path: Path
) -> None:
    of_package, compressed = run(recipe, checkpoint, package, "package", "compressed")
    assert (of_package.passed, compressed.passed) == (True, True), of_package.detail
    assert of_package.psnr_db is not None
    assert of_package.psnr_db > 120
    plain = load_recipe("tiny-llama", [*PALETTES, f"compress.rules={RULES}", "compress.calibration=null"])
    (without,) = run(plain, checkpoint, package_of(plain, checkpoint, cache, tmp_path, None), "compressed")
    assert compressed.detail["kl"]["mean"] < 0.75 * without.detail["kl"]["mean"]
    # nothing else says what fitted weights are
    assert run(recipe, checkpoint, None, "compressed")[0].skipped == (
        "weights that are fitted to a text are in a package alone"
    )


def test_the_same_bytes_come_of_any_number_of_threads(
    recipe: Recipe, checkpoint: Checkpoint, windows: list[list[int]], fitted: dict[str, Fitted], tmp_path: Path
) -> None:
    torch.set_num_threads(3)
    try:
        again = calibrate(recipe, checkpoint, windows, tmp_path)
    finally:
        torch.set_num_threads(1)
    assert again.keys() == fitted.keys()
    for name, one in fitted.items():
        assert [path.read_bytes() for path in one.files] == [path.read_bytes() for path in again[name].files], name


def test_a_program_that_uses_another_layers_weight_fails(
    recipe: Recipe, checkpoint: Checkpoint, package: Path, tmp_path: Path
) -> None:
    placed = WeightLayout.of(stored_parameters([build_decoder(recipe, exported_form(recipe))])).placed
    one, other = (placed[f"layers.{layer}.mlp.gate.weight"].blobs[0].offset for layer in (0, 3))
    copy = Path(shutil.copytree(package, tmp_path / "model.mlpackage"))
    path = copy / "Data/com.apple.CoreML/model.mlmodel"
    model = Model_pb2.Model.FromString(path.read_bytes())
    exchanged = 0
    for function in model.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                for argument in (a for given in operation.inputs.values() for a in given.arguments):
                    if argument.value.blobFileValue.offset == one:
                        argument.value.blobFileValue.offset, exchanged = other, exchanged + 1
    assert exchanged
    path.write_bytes(model.SerializeToString())
    (found,) = run(recipe, checkpoint, copy, "package")
    assert found.passed is False
    assert found.detail["first_below"]["tensor"] == "layers.0.output"


def test_blobs_that_changed_places_are_not_the_checkpoints(
    recipe: Recipe, checkpoint: Checkpoint, package: Path, tmp_path: Path
) -> None:
    """The program uses what lies where the layout says, and so does the reference: both would be wrong alike."""
    placed = WeightLayout.of(stored_parameters([build_decoder(recipe, exported_form(recipe))])).placed
    copy = Path(shutil.copytree(package, tmp_path / "model.mlpackage"))
    data = bytearray((copy / FILE).read_bytes())
    for one, other in zip(*(placed[f"layers.{layer}.mlp.gate.weight"].blobs for layer in (0, 3)), strict=True):
        first, second = (slice(blob.offset + 64, blob.offset + 64 + blob.part.bytes) for blob in (one, other))
        data[first], data[second] = data[second], data[first]
    (copy / FILE).write_bytes(data)
    (found,) = run(recipe, checkpoint, copy, "package")
    assert found.passed is False
    assert found.detail["strangers"] == ["layers.0.mlp.gate.weight", "layers.3.mlp.gate.weight"]


def test_the_inputs_of_the_first_matrices_are_the_normed_embeddings(
    recipe: Recipe, checkpoint: Checkpoint, windows: list[list[int]]
) -> None:
    with threads() as own:
        of_text = TextPass(recipe, checkpoint, windows[:2], own)
        passing = of_text.run()
        next(passing)
        found = next(passing).statistics
    assert found["layers.0.attention.q.weight"] is found["layers.0.attention.v.weight"]
    assert found["layers.0.attention.q.weight"] is not found["layers.0.attention.o.weight"]
    table, norm = (checkpoint.read(f"model.{n}.weight").double() for n in ("embed_tokens", "layers.0.input_layernorm"))
    x = table[torch.tensor(windows[:2]).flatten()]
    x = x * (x.square().mean(1, keepdim=True) + recipe.model.norm.eps).rsqrt() * norm
    sizes = x.square().sum(1)
    x = x * (4 * sizes.float().median().double() / sizes).clamp(max=1).sqrt()[:, None]
    expected = x.t() @ x / len(x)
    ours = found["layers.0.attention.q.weight"].hessian
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_every_matrix_of_a_mixture_with_shared_caches_and_rows_of_a_table_has_inputs() -> None:
    """Experts, routers, per-layer gates and projections; embeddings that are the head too."""
    recipe, source = load_recipe("gemma4-tiny"), open_checkpoint("embedded:gemma4-tiny")
    assert _found_in(recipe, source) == _matrices_of(recipe)


def _found_in(recipe: Recipe, source: Checkpoint) -> set[str]:
    tokens = torch.randint(recipe.model.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0)).tolist()
    with threads() as own:
        return {name for found in TextPass(recipe, source, tokens, own).run() for name in found.statistics}


def _matrices_of(recipe: Recipe) -> set[str]:
    decoder = folded_decoder(recipe)
    return {n for n, p in decoder.named_parameters() if is_matrix(n, tuple(p.shape)) and n not in decoder.tables}


def test_a_build_whose_text_is_too_short_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("A short text.")
    path = tmp_path / "r.yaml"
    path.write_text(
        "extends: tiny-llama\nname: small\n"
        "compress: {default: {kind: palettize, bits: 4}, calibration: {text: [short.txt]}}\n"
    )
    with pytest.raises(UserError, match=r"compress.calibration.text: 9 tokens, but 16,384 are asked for"):
        build(path, CHECKPOINTS / "tiny-llama", tmp_path / "dist")
    assert [entry for entry in (tmp_path / "dist").iterdir() if not entry.name.endswith(".lock")] == []
