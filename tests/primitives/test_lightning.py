"""Lightning attention against transformers' MiniMax: whole, in padded calls, on repeated tokens; mutants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from figures import psnr
from mixers import CALLS, HIDDEN, S, begin_anew, by_calls, let_padding_write, tokens, whole
from torch import Tensor

from coreai_recipes.primitives import lightning as module
from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.lightning import Lightning
from coreai_recipes.recipe.schema import LayerKind, RMSNorm
from coreai_recipes.weights.computed import lightning_fading

HEADS, D, LAYER, LAYERS = 6, 8, 2, 5
PARTS = ("query", "key", "value")


def pair() -> tuple[Any, Lightning]:
    """transformers' layer with random weights, and ours with the same."""
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, head_dim=D, num_hidden_layers=LAYERS, block_size=32
    )
    theirs = MiniMaxLightningAttention(config, LAYER).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            random = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1 + random * 0.2)
    kind = LayerKind.model_validate({
        "attention": {"kind": "lightning", "num_value_heads": HEADS, "value_dim": D, "eps": 1e-6},
        "rotary": {"kind": "none"},
        "mlp": {"kind": "none"},
    })  # fmt: skip
    ours = build_attention(kind, HIDDEN, RMSNorm(kind="rms", eps=2e-5))
    assert isinstance(ours, Lightning)
    stored = theirs.state_dict()
    by_head = stored["qkv_proj.weight"].view(HEADS, 3, D, HIDDEN)
    tensors = {f"{part}.weight": by_head[:, place] for place, part in enumerate(PARTS)}
    tensors |= {"gate.weight": stored["output_gate.weight"], "out_norm.weight": stored["norm.weight"]}
    tensors |= {"last.weight": stored["out_proj.weight"], "fading": lightning_fading(HEADS, LAYER, LAYERS)}
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = ours.get_parameter(name)
            parameter.copy_(tensor.reshape(parameter.shape))
    assert tensors.keys() == dict(ours.named_parameters()).keys()
    return theirs, ours


def theirs_of(theirs: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = theirs(x, None, None)[0]
    return y


def both() -> tuple[Tensor, Tensor]:
    theirs, ours = pair()
    return theirs_of(theirs, tokens()), whole(ours, tokens())


def test_slopes_are_transformers_to_the_bit() -> None:
    theirs, ours = pair()
    assert torch.equal(-theirs.slope_rate.flatten(), ours.fading.flatten())


@pytest.mark.parametrize("distinct", [S, 1, 2], ids=["random", "one token repeated", "two in turn"])
def test_a_layer_and_its_padded_calls_and_single_tokens_are_transformers_layer(distinct: int) -> None:
    theirs, ours = pair()
    x = tokens(distinct)
    expected = theirs_of(theirs, x)
    assert psnr(expected, whole(ours, x)) >= 120
    assert psnr(expected, by_calls(ours, x, CALLS)) >= 120


def the_layer_behind(ours: Lightning, patch: pytest.MonkeyPatch) -> None:
    ours.fading.copy_(lightning_fading(HEADS, LAYER + 1, LAYERS).view(ours.fading.shape))


def heads_in_turn(ours: Lightning, patch: pytest.MonkeyPatch) -> None:
    ours.fading.copy_(ours.fading.flip(1))


def keys_for_queries(ours: Lightning, patch: pytest.MonkeyPatch) -> None:
    ours.query, ours.key = ours.key, ours.query


def gate_by_silu(ours: Lightning, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module.torch, "sigmoid", torch.nn.functional.silu)


def values_as_they_are(ours: Lightning, patch: pytest.MonkeyPatch) -> None:
    ours.activation = lambda x: x


def padding_that_writes(ours: Lightning, patch: pytest.MonkeyPatch) -> None:
    let_padding_write(patch)


def begins_anew(ours: Lightning, patch: pytest.MonkeyPatch) -> None:
    begin_anew(patch)


@pytest.mark.parametrize(
    "mutate",
    [
        the_layer_behind,
        heads_in_turn,
        keys_for_queries,
        gate_by_silu,
        values_as_they_are,
        padding_that_writes,
        begins_anew,
    ],
)
def test_a_mechanism_that_is_wrong_is_seen(
    mutate: Callable[[Lightning, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair()
    expected = theirs_of(theirs, tokens())
    with torch.no_grad():
        mutate(ours, monkeypatch)
    assert psnr(expected, by_calls(ours, tokens(), CALLS)) < 60
