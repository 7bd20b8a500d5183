"""The exported form of dense families is the same function: heads in the rotary's order, the residual stream scaled."""

from typing import Any

import pytest
import torch
from family_configs import all_configs
from figures import psnr

from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.primitives.layer import PLAIN, Form
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint

CONFIGS = all_configs()
# Pairs that change places within heads of every sort of norm, and streams that are read and written in every placement.
SAME = (
    "cohere-normed",
    "cohere2-unusual",
    "gpt_neox-plain",
    "phi-normed",
    "stablelm-12b",
    "olmo2-unusual",
    "exaone4-plain",
    "granite-unusual",
    "bloom-plain",
    "gpt2-plain",
    "opt-plain",
    "falcon-40b",
    "apertus-plain",
    "hunyuan-alpha",
    "persimmon-plain",
    "gpt_bigcode-unscaled",
)


def read(name: str) -> Recipe:
    return recipe_from_config(CONFIGS[name], "small").recipe


def logits(recipe: Recipe, form: Form) -> torch.Tensor:
    decoder = build_decoder(recipe, form)
    fill_from(decoder, bind_weights(decoder, RandomCheckpoint(recipe)))
    ids = torch.randint(0, recipe.model.vocab_size, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return decoder(ids)


@pytest.mark.parametrize(
    "form",
    [Form(folded="contiguous"), Form(residual_scale=0.25), Form(head_scale=0.25)],
    ids=["folded", "scaled", "head scaled"],
)
@pytest.mark.parametrize("name", SAME)
def test_the_exported_form_is_the_same_function(name: str, form: Form) -> None:
    recipe = read(name)
    assert psnr(logits(recipe, PLAIN), logits(recipe, form)) >= 110


def scaled(name: str, **model: Any) -> Recipe:
    data = read(name).model_dump()
    data["export"]["residual_scale"] = 0.25
    data["model"] |= model
    return Recipe.model_validate(data)


def test_a_stream_that_nothing_would_scale_back_is_refused() -> None:
    with pytest.raises(ValueError, match="read the residual stream without a norm") as caught:
        scaled("opt-350m")
    assert (
        "export.residual_scale: the blocks of `full` read the residual stream without a norm that would undo it; "
        "export.residual_scale: no norm before the head would undo it"
    ) in str(caught.value)


def test_learned_positions_end_the_context() -> None:
    data = read("gpt2-plain").model_dump()
    data["export"]["context"] = 257
    with pytest.raises(ValueError, match="257 positions, and 256 are learned: the others have no rows"):
        Recipe.model_validate(data)


def test_a_head_that_turns_and_falls_with_distance_is_refused() -> None:
    data = read("bloom-plain").model_dump()
    data["model"]["kinds"]["full"]["rotary"] = {"kind": "full", "theta": 10000.0}
    with pytest.raises(ValueError, match=r"alibi needs heads without a rotary"):
        Recipe.model_validate(data)


def test_a_width_that_is_hidden_size_is_refused() -> None:
    data = read("opt-plain").model_dump()
    data["model"]["embedding"]["width"] = data["model"]["hidden_size"]
    with pytest.raises(ValueError, match="48 is hidden_size: there is nothing to project"):
        Recipe.model_validate(data)
