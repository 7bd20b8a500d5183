"""Experts of query heads against transformers' JetMoE, layer by layer; mutants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_configs import all_configs
from figures import psnr
from torch import Tensor

from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.primitives.cache import NoCache
from coreai_recipes.primitives.layer import Form
from coreai_recipes.primitives.mixture_attention import MixtureAttention
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint
from coreai_recipes.verification.reference import LayerRecord, Reference
from coreai_recipes.weights.folding import stored_as

S = 19


def small() -> Recipe:
    return recipe_from_config(all_configs()["jetmoe-unusual"], "small").recipe


def layers(mutate: Callable[[Any], None] = lambda _: None, tokens: int = S) -> list[tuple[Tensor, Tensor]]:
    """Their and our attention in each layer, on what the layer is given."""
    recipe = small()
    checkpoint = RandomCheckpoint(recipe)
    records: list[LayerRecord] = []
    Reference(recipe, checkpoint).run(range(tokens), records.append)
    decoder = build_decoder(recipe)
    fill_from(decoder, bind_weights(decoder, checkpoint))
    zero, all_real = torch.zeros(1, dtype=torch.int32), torch.full((1,), tokens, dtype=torch.int32)
    inputs = decoder.front.see(decoder.front.call(tokens, cached=False), zero, all_real)
    found = []
    for layer, record in zip(decoder.layers, records, strict=True):
        assert isinstance(layer.attention, MixtureAttention)
        mutate(layer.attention)
        with torch.no_grad():
            y = layer.attention(layer.attention_norm(record.input.t()[None, :, None]), inputs[layer.kind], NoCache())
        found.append((record.attention, y.squeeze(2)[0].t()))
    return found


def read_all(ours: MixtureAttention) -> None:
    ours.decode = "all"


@pytest.mark.parametrize("mutate", [lambda _: None, read_all], ids=["gathered", "all"])
def test_one_token_s_heads_are_those_of_its_experts(mutate: Callable[[Any], None]) -> None:
    assert min(psnr(*pair) for pair in layers(mutate, 1)) >= 120


def weighs_alike(ours: MixtureAttention, patch: pytest.MonkeyPatch) -> None:
    usual = ours.router.forward
    patch.setattr(ours.router, "forward", lambda x: (torch.full_like(usual(x)[0], 1 / ours.top), usual(x)[1]))


def takes_the_worst(ours: MixtureAttention, patch: pytest.MonkeyPatch) -> None:
    ours.router.proj.weight.neg_()


def another_q(ours: MixtureAttention, patch: pytest.MonkeyPatch) -> None:
    ours.q.weight.copy_(ours.q.weight.roll(1, 0))


def another_o(ours: MixtureAttention, patch: pytest.MonkeyPatch) -> None:
    ours.o.weight.copy_(ours.o.weight.roll(1, 0))


def no_bias(ours: MixtureAttention, patch: pytest.MonkeyPatch) -> None:
    ours.o.bias = None


def neighbours_share_keys(ours: MixtureAttention, patch: pytest.MonkeyPatch) -> None:
    """Head h with KV head h // top, as in grouped queries, and not h % G."""
    G, D, usual = ours.num_kv_heads, ours.head_dim, ours.attend

    def attend(q: Tensor, *given: Tensor) -> Tensor:
        as_theirs = q.view(G, ours.top, D, -1).transpose(0, 1).reshape(q.shape)
        back = usual(as_theirs, *given).view(ours.num_heads, D, -1)
        return back.view(ours.top, G, D, -1).transpose(0, 1).reshape(1, ours.num_heads * D, 1, -1)

    patch.setattr(ours, "attend", attend)


@pytest.mark.parametrize(
    "mutate", [weighs_alike, takes_the_worst, another_q, another_o, no_bias, neighbours_share_keys]
)
def test_a_mechanism_that_is_wrong_is_seen(
    mutate: Callable[[MixtureAttention, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        assert max(psnr(*pair) for pair in layers(lambda ours: mutate(ours, monkeypatch))) < 60


def test_a_fold_permutes_the_rows_of_every_expert_s_queries() -> None:
    data = small().model_dump()
    for kind in data["model"]["kinds"].values():
        kind["rotary"]["pairing"] = "interleaved"
    recipe = Recipe.model_validate(data)
    form = Form(folded="contiguous")
    of_q, of_k = (stored_as(recipe, f"layers.0.attention.{name}.weight", form) for name in ("q", "k"))
    assert of_q.row_order is None
    assert of_q.column_order == of_k.row_order  # (experts, rows, columns)
    assert sorted(of_q.column_order or ()) == list(range(20))


def test_a_bias_of_the_sum_takes_up_the_scale_of_the_stream() -> None:
    form = Form(residual_scale=0.25)
    for name in ("attention.o.weight", "attention.o.bias", "mlp.down", "mlp.output_bias"):
        assert stored_as(small(), f"layers.0.{name}", form).factor == 0.25
    assert stored_as(small(), "layers.0.attention.q.weight", form).factor == 1.0
