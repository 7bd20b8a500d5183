"""The whole decoder against transformers, layer by layer, and its parameters."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoder_sessions import FLOOR, random_ids, stitched
from families import FAMILIES
from figures import psnr
from torch import Tensor, nn

from coreai_recipes.decoder.model import build_decoder, empty, fill
from coreai_recipes.primitives.layer import PLAIN
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.weights.folding import stored_as


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


# --- against transformers -------------------------------------------------------------------------------------------


def layer_outputs(layers: nn.ModuleList, run: Callable[[], Any]) -> list[Tensor]:
    """What each layer gives while `run` runs."""
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, y: outputs.append(y)) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_and_the_logits_equal_transformers(family: str) -> None:
    pair, ids = FAMILIES[family](), random_ids(50)
    decoder = pair.decoder()
    theirs = layer_outputs(pair.model.model.layers, lambda: pair.model(ids))
    ours = layer_outputs(decoder.layers, lambda: decoder(ids))
    assert len(theirs) == len(ours) == len(pair.recipe.model.layer_kinds)
    for reference, x in zip(theirs, ours, strict=True):
        assert psnr(reference, x.squeeze(2).transpose(1, 2)) >= FLOOR
    assert psnr(pair.model(ids).logits, decoder(ids)) >= FLOOR


# one thing of the whole model that a recipe can say wrongly; what belongs to attention is in test_attention.py
MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "an embedding without its scale": ("gemma2", {"embedding": {"scale": 1.0}}),
    "norms that multiply by w": ("gemma2", {"norm": {"kind": "rms", "eps": 1e-5, "weight": "w"}}),
    "norms only before": ("gemma2", {"placement": "pre"}),
    "logits without their softcap": ("gemma2", {"head": {"tied": True, "softcap": None}}),
    "a head that is the table": ("llama", {"head": {"tied": True}}),
    "an epsilon that is 1000 times larger": ("llama", {"norm": {"kind": "rms", "eps": 1e-2}}),
    "layer norms": ("llama", {"norm": {"kind": "layer", "eps": 1e-5, "bias": False}}),
    "kinds in another order": ("gemma3", {"layers": ["full", "sliding", "sliding"]}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_recipe_that_says_something_else_is_seen(mutant: str) -> None:
    family, changes = MUTANTS[mutant]
    pair, ids = FAMILIES[family](), random_ids(50)
    data = pair.recipe.model_dump()
    data["model"].update(changes)
    assert psnr(pair.model(ids).logits, pair.decoder(Recipe.model_validate(data))(ids)) < 60


def test_kinds_of_different_windows_and_head_dims_live_in_one_model() -> None:
    decoder, reference = stitched()
    ids = random_ids(50)
    assert psnr(reference(ids), decoder(ids)) >= FLOOR
    # wide and far have one rotary, but not one head_dim: angles of their own
    assert {name: decoder.front.call(1).angle_group(name) for name in decoder.front.kinds} == {
        n: n for n in ("near", "wide", "far")
    }
    assert decoder.slots == [0, 0, 2, 0, 2]


def test_kinds_that_turn_or_see_alike_share_their_angles_and_masks() -> None:
    """Gemma 2's kinds turn alike, Gemma 3's do not."""
    gemma2, gemma3 = (build_decoder(FAMILIES[name]().recipe).front for name in ("gemma2", "gemma3"))
    assert [gemma2.call(1).angle_group(name) for name in ("sliding", "full")] == ["sliding", "sliding"]
    assert [gemma3.call(1).angle_group(name) for name in ("sliding", "full")] == ["sliding", "full"]
    assert [gemma2.call(1).mask_group(name) for name in ("sliding", "full")] == ["sliding", "full"]


# --- parameters -----------------------------------------------------------------------------------------------------


def test_a_decoder_is_built_without_memory_and_every_parameter_is_asked_for_once() -> None:
    pair = FAMILIES["gemma3"]()
    decoder = build_decoder(pair.recipe)
    assert not decoder.training
    names = [name for name, parameter in decoder.named_parameters() if parameter.is_meta]
    assert names == list(decoder.state_dict())
    assert not list(decoder.buffers())
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return pair.read(name).to(torch.float64)

    fill(decoder, read)
    assert asked == names
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in decoder.parameters())
    # as many numbers as transformers has, tied table and all
    assert sum(p.numel() for p in decoder.parameters()) == sum(p.numel() for p in pair.model.parameters())


def test_a_part_is_filled_by_its_names_in_the_whole() -> None:
    pair, whole = FAMILIES["qwen2"](), FAMILIES["qwen2"]().decoder()
    decoder = build_decoder(pair.recipe)
    fill(decoder.layers[1], pair.read, "layers.1.")
    assert {name.rsplit(".", 4)[0] for name, p in decoder.named_parameters() if not p.is_meta} <= {"layers.1", "layers"}
    for name, parameter in decoder.layers[1].named_parameters():
        assert torch.equal(parameter, whole.layers[1].get_parameter(name))
    assert all(p.is_meta for p in decoder.layers[0].parameters())


def test_an_emptied_layer_gives_its_memory_back_and_can_be_filled_again() -> None:
    pair = FAMILIES["llama"]()
    decoder, ids = pair.decoder(), random_ids(9)
    expected = decoder(ids)
    empty(decoder.layers[1])
    assert all(p.is_meta for p in decoder.layers[1].parameters())
    assert not any(p.is_meta for p in decoder.layers[0].parameters())
    fill(decoder.layers[1], pair.read, "layers.1.")
    assert torch.equal(decoder(ids), expected)


def changed(recipe: Recipe, *path: str, **changes: Any) -> Recipe:
    data = recipe.model_dump()
    block = data
    for key in path:
        block = block[key]
    block.update(changes)
    return Recipe.model_validate(data)


def test_one_is_added_to_the_weights_of_1_plus_w_norms_and_to_nothing_else() -> None:
    for family in FAMILIES:
        recipe = FAMILIES[family]().recipe
        expects = family in ("gemma2", "gemma3")  # Gemma 4 multiplies by w
        for name, _ in build_decoder(recipe).named_parameters():
            assert stored_as(recipe, name, PLAIN).offset == (
                1.0 if expects and name.endswith("norm.weight") else 0.0
            ), name


def test_a_kinds_own_norm_and_a_qk_norm_of_its_own_decide_for_themselves() -> None:
    recipe = FAMILIES["gemma3"]().recipe  # sliding, sliding, full
    plain = {"kind": "rms", "eps": 1e-5, "weight": "w"}
    recipe = changed(recipe, "model", "kinds", "full", norm=plain)
    recipe = changed(recipe, "model", "kinds", "sliding", "attention", qk_norm={"over": "head", "norm": plain})
    offsets = {name: stored_as(recipe, name, PLAIN).offset for name, _ in build_decoder(recipe).named_parameters()}
    assert offsets["norm.weight"] == offsets["layers.0.attention_norm.weight"] == 1.0
    assert offsets["layers.0.attention.q_norm.weight"] == offsets["layers.0.attention.k_norm.weight"] == 0.0
    assert {offset for name, offset in offsets.items() if name.startswith("layers.2.")} == {0.0}


def test_a_layer_norms_bias_is_taken_as_it_is() -> None:
    layer_norm = {"kind": "layer", "eps": 1e-5, "weight": "1+w", "bias": True}
    recipe = changed(FAMILIES["llama"]().recipe, "model", norm=layer_norm)
    names = dict(build_decoder(recipe).named_parameters())
    assert "norm.bias" in names
    assert [stored_as(recipe, f"norm.{leaf}", PLAIN).offset for leaf in ("weight", "bias")] == [1.0, 0.0]


def test_an_identical_model_has_an_infinite_figure() -> None:
    """The figure itself: inf for the same tensor, -inf for a tensor that is not finite."""
    x = random_ids(9).float()
    assert psnr(x, x) == math.inf
    assert psnr(x, x / 0) == -math.inf
    assert psnr(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -4.1])) == pytest.approx(
        20 * math.log10(4) - 10 * math.log10(0.005), abs=1e-4
    )
