"""`export.mlp_layout: 8x8`: the 64 tokens of a prefill as a square within an MLP, and nowhere else."""

from collections import Counter

import pytest
import torch
from coremltools.proto import Model_pb2
from figures import psnr
from programs import layer_kind, random_weights, small_recipe

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder, build_decoder, exported_form, fill
from coreai_recipes.export.fragments import layer_fragment
from coreai_recipes.recipe.rules import find_problems
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.chunks import chunks_of
from coreai_recipes.targets.coreml.convert import convert_fragment

KINDS = {
    "gated": layer_kind(),
    "plain": layer_kind(mlp={"kind": "plain", "activation": "xielu"}, placement="parallel"),
}


def decoder_of(layout: str) -> Decoder:
    recipe = small_recipe(KINDS, list(KINDS), prefill=64)
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"mlp_layout": layout})})
    decoder, weights = build_decoder(recipe, exported_form(recipe)), random_weights(Recipe.model_validate(recipe))
    fill(decoder, lambda name: weights[name])
    return decoder


def operations(decoder: Decoder, kind: str, queries: int) -> tuple[Counter[str], set[tuple[int, ...]]]:
    """How many of each type a layer has, and the shapes of its convolutions' results behind the channels."""
    model = Model_pb2.Model.FromString(
        convert_fragment(layer_fragment(decoder, kind, CallShape(decoder.front, queries), chunks_of([decoder])[0]))
    )
    function = model.mlProgram.functions["main"]
    found = [op for op in function.block_specializations[function.opset].operations if op.type != "const"]
    convs = [op.outputs[0].type.tensorType for op in found if op.type == "conv"]
    shapes = {tuple(d.constant.size for d in kind.dimensions[2:]) for kind in convs}
    return Counter(op.type for op in found), shapes


def test_a_square_changes_no_logit_by_more_than_the_order_of_its_sums() -> None:
    ids = torch.randint(0, 131, (1, 64), generator=torch.Generator().manual_seed(1))
    row, square = (decoder_of(layout)(ids, 0, 64, None) for layout in ("row", "8x8"))
    assert psnr(row, square) >= 120


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mlp_of_a_prefill_is_a_square_by_two_reshapes(kind: str) -> None:
    row, square = decoder_of("row"), decoder_of("8x8")
    before, in_row = operations(row, kind, 64)
    after, mixed = operations(square, kind, 64)
    assert after - before == Counter({"reshape": 2})
    assert (in_row, mixed) == ({(1, 64)}, {(1, 64), (8, 8)})
    assert operations(square, kind, 1) == operations(row, kind, 1)


@pytest.mark.parametrize(("prefill", "is_refused"), [(64, False), (32, True), (None, False)])
def test_a_square_is_of_64_tokens(prefill: int | None, is_refused: bool) -> None:
    functions = {} if prefill is None else {"functions": {"prefill": prefill}}
    found = find_problems({"export": {"context": 512, "mlp_layout": "8x8", **functions}})
    assert [problem.message for problem in found if problem.location == ("export", "mlp_layout")] == (
        ["8x8 needs a prefill of 64 tokens, and this one takes 32"] if is_refused else []
    )
