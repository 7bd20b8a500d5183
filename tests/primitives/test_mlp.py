"""The gated MLP against transformers', each activation and bias."""

from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from families import FAMILIES
from figures import psnr
from mixture_families import MIXTURES, compared
from torch import Tensor

from coreai_recipes.primitives.mlp import ACTIVATIONS, build_mlp
from coreai_recipes.recipe import schema

Case = Callable[[], tuple[Tensor, Tensor]]


def of_family(name: str) -> Case:
    """Every layer's MLP of a family, on hidden states large enough to bend the activation."""

    def compare() -> tuple[Tensor, Tensor]:
        pair = FAMILIES[name]()
        x = 3 * torch.randn(1, 9, pair.recipe.model.hidden_size)
        decoder = pair.decoder()
        theirs = [layer.mlp(x) for layer in pair.model.model.layers]
        ours = [layer.mlp(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2) for layer in decoder.layers]
        return torch.stack(theirs), torch.stack(ours)

    return compare


PARITY: dict[str, dict[str, Case]] = {
    "gated": {name: of_family(name) for name in ("llama", "llama_biased", "gemma2")},
    "moe": {name: partial(compared, name, "gathered", 9) for name in MIXTURES},  # test_mixture.py has more
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_an_mlp_equals_its_reference(kind: str, name: str) -> None:
    reference, x = PARITY[kind][name]()
    assert psnr(reference, x) >= 120


def test_every_activation_that_a_recipe_can_say_is_compared() -> None:
    compared = {
        kind.mlp.activation for name in PARITY["gated"] for kind in FAMILIES[name]().recipe.model.kinds.values()
    }
    said = set(get_args(schema.GatedMLP.model_fields["activation"].annotation))
    assert compared == said == set(ACTIVATIONS)


def test_the_other_activation_is_another_function() -> None:
    """What an activation mixed up looks like: silu and tanh-gelu differ by far more than the floor."""
    pair = FAMILIES["llama"]()
    decoder = pair.decoder()
    x = 3 * torch.randn(1, pair.recipe.model.hidden_size, 1, 9)
    spec = pair.recipe.model.kinds["full"].mlp.model_copy(update={"activation": "gelu_tanh"})
    wrong = build_mlp(spec, pair.recipe.model.hidden_size)
    wrong.load_state_dict(decoder.layers[0].mlp.state_dict())
    assert psnr(decoder.layers[0].mlp(x), wrong(x)) < 60


@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_is_there_when_the_recipe_says_so(bias: bool) -> None:
    spec = schema.GatedMLP(kind="gated", activation="silu", intermediate_size=88, bias=bias)
    names = {name for name, _ in build_mlp(spec, 48).named_parameters()}
    weights = {f"{part}.weight" for part in ("gate", "up", "down")}
    assert names == (weights | {f"{part}.bias" for part in ("gate", "up", "down")} if bias else weights)
