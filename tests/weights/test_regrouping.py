"""Channels of MLPs in the order of their size: the same function, and the same order wherever it is found."""

from pathlib import Path

import pytest
import torch

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import Decoder, build_decoder, exported_form
from coreai_recipes.errors import RecipeError
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.storage.compression import shown_name
from coreai_recipes.storage.reading import stored_weights
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.verification import run_stages
from coreai_recipes.verification.packaged import packaged_decoder
from coreai_recipes.weights.regrouping import row_sizes

PALETTES = ["compress.default={kind: palettize, bits: 4}", "compress.calibration=null"]
# a part of an MLP that is read from the package stands beside parts that are not
RULES = 'compress.rules=[{match: "layers.1.mlp.down", kind: float16}, {match: layers.2.mlp.gate, kind: float16}]'


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(Path(__file__).parents[1] / "checkpoints" / "tiny-llama")


def decoder_of(recipe: Recipe, checkpoint: Checkpoint) -> Decoder:
    decoder = build_decoder(recipe, exported_form(recipe))
    fill_from(decoder, bind_weights(decoder, checkpoint))
    return decoder


@pytest.mark.parametrize("name", ["tiny-llama", "gemma4-tiny"])
def test_a_regrouped_decoder_is_the_same_function(name: str, checkpoint: Checkpoint) -> None:
    source = checkpoint if name == "tiny-llama" else open_checkpoint("embedded:gemma4-tiny")
    plain, moved = (
        decoder_of(load_recipe(name, [*PALETTES, f"compress.regroup={said}"]), source) for said in ("false", "true")
    )
    assert not torch.equal(plain.get_parameter("layers.1.mlp.up.weight"), moved.get_parameter("layers.1.mlp.up.weight"))
    ids = torch.randint(plain.recipe.model.vocab_size, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = moved(ids), plain(ids)
    # sums of `down` are taken in another order
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_every_number_is_given_back_to_its_place(checkpoint: Checkpoint) -> None:
    recipe = load_recipe("tiny-llama", [*PALETTES, "compress.regroup=true"])
    stored = bind_weights(build_decoder(recipe), checkpoint)
    moved = bind_weights(build_decoder(recipe, exported_form(recipe)), checkpoint)
    for name in ("gate", "up", "down"):
        each = moved[f"layers.0.mlp.{name}.weight"]
        assert torch.equal(each.rewrite.unfold(each.read()), stored[f"layers.0.mlp.{name}.weight"].read())
    rows = [row_sizes(moved[f"layers.0.mlp.{name}.weight"].read()) for name in ("gate", "up")]
    assert bool((rows[0] * rows[1]).diff().ge(0).all())


def test_sizes_do_not_depend_on_the_order_of_sums() -> None:
    matrix = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)).half()
    mixed = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(row_sizes(matrix), row_sizes(matrix[:, mixed]))
    assert torch.equal(row_sizes(torch.zeros(3, 5)), torch.ones(3, dtype=torch.float64))


def test_the_stages_compare_a_regrouped_package_with_the_checkpoint(
    checkpoint: Checkpoint, fragments: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("tiny-llama", [*PALETTES, RULES, "compress.regroup=true", "export.mlp_scale=0.5"])
    decoder, package = build_decoder(recipe, exported_form(recipe)), tmp_path / "model.mlpackage"
    export_package([decoder], bind_weights(decoder, checkpoint), package, FragmentCache(fragments))
    of_package, compressed = run_stages(recipe, checkpoint, package, stages=["package", "compressed"]).stages
    assert (of_package.passed, compressed.passed) == (True, True), of_package.detail
    assert min(float(row["psnr_db"]) for row in compressed.detail["by_tensor"]) > 15
    # without the checkpoint nobody knows the order, and needs it
    found = packaged_decoder(recipe, package)
    assert shown_name(next(iter(found))) == "embedding"
    given, own = ({n: w.read() for n, w in packaged_decoder(recipe, package, c).items()} for c in (None, checkpoint))
    ids = torch.arange(20)[None]
    logits = []
    for weights in (given, own):
        plain = build_decoder(recipe)
        for name, parameter in list(plain.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            value = torch.nn.Parameter(weights[name].float().reshape(parameter.shape), requires_grad=False)
            setattr(plain.get_submodule(owner), leaf, value)
        with torch.inference_mode():
            logits.append(plain(ids))
    assert (logits[0] - logits[1]).abs().max() < 1e-5 * logits[1].abs().max()
    assert not torch.equal(given["layers.0.mlp.up.weight"], own["layers.0.mlp.up.weight"])
    # some rows of what was moved, as where a checkpoint has equal rows
    for name in ("layers.0.mlp.up.weight", "layers.0.attention.q.weight"):
        for weights in (packaged_decoder(recipe, package, checkpoint), stored_weights(recipe, checkpoint)):
            assert torch.equal(weights[name].read_rows([5, 2]), weights[name].read()[[5, 2]])


def test_numbers_of_the_checkpoints_own_forms_stay_where_they_are() -> None:
    with pytest.raises(RecipeError, match="`default: source` keeps the checkpoint's numbers where they are"):
        load_recipe("tiny-llama", ["compress.default=source", "compress.regroup=true"])
