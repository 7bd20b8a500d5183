"""The numbers by which Falcon-H1 multiplies what passes its blocks, as factors of weights: none is without effect."""

from typing import Any

import pytest
import torch
from figures import psnr
from small_delta import save_delta
from small_models import small_model

from coreai_recipes.checkpoint import Checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import build_decoder, fill
from coreai_recipes.recipe import Recipe
from coreai_recipes.weights.rewrite import Rewrite

MULTIPLIERS: dict[str, tuple[str, ...]] = {
    "attention": ("input", "key", "output"),
    "state_space": ("input", "gate", "values", "keys", "queries", "step", "output"),
    "mlp": ("gate", "output"),
}
IDS = torch.arange(2, 42)[None]


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Recipe, Checkpoint]:
    """A small Falcon-H1 with biases, every number off 1, saved; its recipe."""
    from transformers import FalconH1Config, FalconH1ForCausalLM

    config = FalconH1Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, mamba_n_heads=4, mamba_d_ssm=64, mamba_n_groups=2, mamba_d_state=8,
        max_position_embeddings=128, key_multiplier=0.7, attention_in_multiplier=1.3, attention_out_multiplier=0.6,
        ssm_in_multiplier=1.2, ssm_out_multiplier=0.4, ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 0.7],
        mlp_multipliers=[0.8, 0.5], attention_bias=True, mlp_bias=True, mamba_proj_bias=True, projectors_bias=True,
    )  # fmt: skip
    theirs = small_model(FalconH1ForCausalLM, config)
    return theirs, *save_delta(theirs, tmp_path_factory.mktemp("falcon"))


def logits(recipe: Recipe, checkpoint: Checkpoint) -> torch.Tensor:
    decoder = build_decoder(recipe)
    weights = bind_weights(decoder, checkpoint)
    fill(decoder, lambda name: weights[name].read())
    with torch.inference_mode():
        return decoder(IDS)


def test_multiplied_weights_are_transformers_products(falcon: tuple[Any, Recipe, Checkpoint]) -> None:
    theirs, recipe, checkpoint = falcon
    with torch.inference_mode():
        assert psnr(theirs(IDS).logits, logits(recipe, checkpoint)) > 115


@pytest.mark.parametrize(("block", "name"), [(block, name) for block, names in MULTIPLIERS.items() for name in names])
def test_a_number_that_is_left_out_is_seen(block: str, name: str, falcon: tuple[Any, Recipe, Checkpoint]) -> None:
    theirs, recipe, checkpoint = falcon
    data = recipe.model_dump(mode="json", exclude_unset=True)
    del data["model"]["kinds"]["full"][block]["multipliers"][name]
    with torch.inference_mode():
        assert psnr(theirs(IDS).logits, logits(Recipe.model_validate(data), checkpoint)) < 60


def test_runs_of_rows_have_their_numbers_in_blocks_too() -> None:
    whole = torch.ones(6, 2)
    rewrite = Rewrite(multiplier=((2, 3.0), (1, 5.0), (3, 7.0)), offset=1.0)
    expected = torch.tensor([4.0, 4, 6, 8, 8, 8])
    assert torch.equal(rewrite.apply(whole)[:, 0], expected)
    assert torch.equal(rewrite.apply(whole[1:4], 1)[:, 1], expected[1:4])
    assert torch.equal(rewrite.unfold(whole), whole)  # what a model makes of its tensor stays
