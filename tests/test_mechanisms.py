"""Each mechanism of a dense family, removed or exchanged, changes the logits: the families' tests would see it.

`test_families` holds every family against transformers. Here the same weights run through the same recipe with one
mechanism less, and must fall far below the floor of that comparison.
"""

from typing import Any

import pytest
import torch
from family_configs import all_configs
from figures import psnr

from coreai_recipes.filling import bind_decoder, fill_from
from coreai_recipes.model import Decoder, build_decoder
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.importing.paths import set_path
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint

CONFIGS = all_configs()
FLOOR = 100.0  # of stage torch
NONE = {"kind": "none"}
# config, path (of the model, or of every kind), value
MUTANTS: dict[str, tuple[str, str, Any]] = {
    "gelu for gelu_tanh": ("phi-plain", "mlp.activation", "gelu"),
    "gelu_tanh for gelu": ("gpt_neox-plain", "mlp.activation", "gelu_tanh"),
    "relu for relu2": ("arcee-plain", "mlp.activation", "relu"),
    "silu for relu": ("opt-plain", "mlp.activation", "silu"),
    "relu2 for xielu": ("apertus-plain", "mlp.activation", "relu2"),
    "one norm for two": ("gpt_neox-plain", "model.placement", "parallel"),
    "one after the other, not side by side": ("gpt_neox-plain", "model.placement", "pre"),
    "side by side, not one after the other": ("gpt_neox-sequential", "model.placement", "parallel_two_norms"),
    "the norm of the sum, not of the block": ("olmo2-plain", "model.placement", "add"),
    "the norm of the block, not of the sum": ("opt-350m", "model.placement", "post"),
    "a norm at the end that is not there": ("olmo2-plain", "model.head.norm", "none"),
    "q and k norms over heads, not the width": ("olmo2-plain", "attention.qk_norm.over", "each_head"),
    "no norms of each head's own": ("cohere-normed", "attention.qk_norm", None),
    "no factor of the logits": ("cohere-unusual", "model.head.scale", 1.0),
    "no residual multiplier": ("granite-unusual", "model.residual_multiplier", 1.0),
    "no clip of q, k and v": ("olmo-unusual", "attention.clip", None),
    "no clip in MPT": ("mpt-unusual", "attention.clip", None),
    "no learned positions": ("gpt2-plain", "model.embedding.positions", None),
    "positions one row off": ("opt-plain", "model.embedding.positions.offset", 1),
    "no alibi": ("bloom-plain", "attention.alibi", None),
    "slopes that end elsewhere": ("bloom-plain", "attention.alibi.max", 7.0),
    "alibi that is not scaled": ("falcon-rw", "attention.alibi.scaled", False),
    "alibi that is not rounded": ("falcon-rw", "attention.alibi.rounding", "none"),
    "no norm of the embedding": ("bloom-plain", "model.embedding.norm", None),
    "no bias of the logits": ("phi-plain", "model.head.bias", False),
    "no biases of the MLP": ("starcoder2-plain", "mlp.bias", False),
    "no biases of attention": ("persimmon-plain", "attention.bias", "none"),
    "RMS for LayerNorm": ("nemotron-plain", "model.norm.kind", "rms"),
    "a rotary where there is none": ("cohere2-plain", "rotary", {"kind": "full", "theta": 10000.0}),
    "halves of the head paired": ("cohere-plain", "rotary.pairing", "half"),
}


def mutate(recipe: Recipe, path: str, value: Any) -> Recipe:
    data = recipe.model_dump(exclude_none=True)
    if path == "model.norm.kind":
        data["model"]["norm"].pop("bias")
    if path.startswith("model."):
        set_path(data, path, value)
    else:
        for kind in data["model"]["kinds"].values():
            if path != "rotary" or kind["rotary"] == NONE:
                set_path(kind, path, value)
    return Recipe.model_validate(data)


def filled(recipe: Recipe, checkpoint: RandomCheckpoint) -> Decoder:
    decoder = build_decoder(recipe)
    fill_from(decoder, bind_decoder(decoder, checkpoint))
    return decoder


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mechanism_that_is_missing_is_seen(mutant: str) -> None:
    name, path, value = MUTANTS[mutant]
    recipe = recipe_from_config(CONFIGS[name], "small").recipe
    checkpoint = RandomCheckpoint(recipe)
    right, wrong = filled(recipe, checkpoint), build_decoder(mutate(recipe, path, value))
    given = dict(right.named_parameters())
    for parameter_name, parameter in wrong.named_parameters():
        # what only the mutant has, a norm or a shape of its own, is neutral
        neutral = (
            torch.ones(parameter.shape) if parameter_name.endswith("norm.weight") else torch.zeros(parameter.shape)
        )
        theirs = given.get(parameter_name)
        fits = theirs is not None and theirs.numel() == parameter.numel()
        owner, _, leaf = parameter_name.rpartition(".")
        tensor = theirs.reshape(parameter.shape) if fits else neutral
        setattr(wrong.get_submodule(owner), leaf, torch.nn.Parameter(tensor, requires_grad=False))
    ids = torch.randint(0, recipe.model.vocab_size, (1, 90), generator=torch.Generator().manual_seed(1))
    assert psnr(right(ids), wrong(ids)) < FLOOR - 10
