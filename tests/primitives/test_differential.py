"""The difference of two attentions against transformers' DiffLlama, layer by layer; mutants."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from family_configs import all_configs
from figures import psnr
from torch import Tensor

from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.primitives.differential import DifferentialAttention
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint
from coreai_recipes.verification.reference import LayerRecord, Reference
from coreai_recipes.weights import computed
from coreai_recipes.weights.rewrite import AS_STORED

S = 19
H, G, D = 12, 4, 20


def small() -> Recipe:
    return recipe_from_config(all_configs()["diffllama-unusual"], "small").recipe


def layers(mutate: Callable[[DifferentialAttention], None] = lambda _: None) -> list[tuple[Tensor, Tensor]]:
    """Their and our attention in each layer, on what the layer is given."""
    recipe = small()
    checkpoint = RandomCheckpoint(recipe)
    records: list[LayerRecord] = []
    Reference(recipe, checkpoint).run(range(S), records.append)
    decoder = build_decoder(recipe)
    fill_from(decoder, bind_weights(decoder, checkpoint))
    zero, all_real = torch.zeros(1, dtype=torch.int32), torch.full((1,), S, dtype=torch.int32)
    inputs = decoder.front.see(decoder.front.call(S, cached=False), zero, all_real)
    found = []
    for layer, record in zip(decoder.layers, records, strict=True):
        assert isinstance(layer.attention, DifferentialAttention)
        mutate(layer.attention)
        y = layer.attention(layer.attention_norm(record.input.t()[None, :, None]), inputs[layer.kind], NoCache())
        found.append((record.attention, y.squeeze(2)[0].t()))
    return found


def test_one_query_s_weights_are_those_of_many() -> None:
    attention: Any = build_decoder(small()).layers[1].attention
    attention.lambda_full = torch.nn.Parameter(torch.full((1, 1, 1, 1), 0.3))
    generator, at = torch.Generator().manual_seed(0), torch.arange(S)
    q, keys, values = (torch.randn(*n, generator=generator) for n in ((H, D, 1, S), (1, G, S, D), (1, G, S, D)))
    whole = attention.attend(q, keys, values, mask(at, at, None))
    last = attention.attend(q[..., -1:], keys, values, mask(at, at[-1:], None, keys_last=True))
    assert psnr(whole[..., -1:], last) > 120


def no_difference(ours: DifferentialAttention, patch: pytest.MonkeyPatch) -> None:
    ours.lambda_full.zero_()


def a_sum(ours: DifferentialAttention, patch: pytest.MonkeyPatch) -> None:
    ours.lambda_full.neg_()


def neighbours_paired(ours: DifferentialAttention, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tensor, "chunk", lambda x, n, axis: (x[:, 0::2], x[:, 1::2]))


def no_norm(ours: DifferentialAttention, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(ours), "finish", lambda _, mixed, x: mixed)


def norm_of_each_head(ours: DifferentialAttention, patch: pytest.MonkeyPatch) -> None:
    of_one: Callable[..., Tensor] = lambda ours, y, x: ours.pair_norm(y.view(H, D, 1, -1)).view(y.shape)  # noqa: E731
    patch.setattr(type(ours), "finish", of_one)


@pytest.mark.parametrize("mutate", [no_difference, a_sum, neighbours_paired, no_norm, norm_of_each_head])
def test_a_mechanism_that_is_wrong_is_seen(
    mutate: Callable[[DifferentialAttention, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        assert max(psnr(*pair) for pair in layers(lambda ours: mutate(ours, monkeypatch))) < 60


def test_lambda_is_of_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computed, "initial_lambda", lambda _: 0.2)  # the first layer's in all
    found = [psnr(*pair) for pair in layers()]
    assert found[0] > 120
    assert max(found[1:]) < 60


def test_the_last_projection_takes_one_less_the_initial_lambda() -> None:
    recipe = small()
    bindings = bind_weights(build_decoder(recipe), RandomCheckpoint(recipe))
    for layer in range(5):
        binding = bindings[f"layers.{layer}.attention.o.weight"]
        stored = replace(binding, rewrite=AS_STORED).read()
        assert psnr(stored * (1 - computed.initial_lambda(layer)), binding.read()) > 120
