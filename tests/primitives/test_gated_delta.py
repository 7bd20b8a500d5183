"""Layers of the gated delta rule against transformers' Qwen3.5: whole, in padded calls, on repeated tokens; mutants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from figures import psnr
from mixers import CALLS, HIDDEN, S, begin_anew, by_calls, tokens, whole
from torch import Tensor

from coreai_recipes.primitives import gated_delta as module
from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.gated_delta import GatedDelta
from coreai_recipes.recipe.schema import LayerKind, RMSNorm

SIZES = {"num_key_heads": 2, "num_value_heads": 6, "key_dim": 12, "value_dim": 10, "taps": 3}
THEIRS = {"gate": "in_proj_z", "beta": "in_proj_b", "decay": "in_proj_a", "last": "out_proj"}


def kind(**changes: Any) -> LayerKind:
    return LayerKind.model_validate({
        "attention": {"kind": "gated_delta", **SIZES, **changes},
        "rotary": {"kind": "none"},
        "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 88},
    })  # fmt: skip


def pair(**changes: Any) -> tuple[Any, GatedDelta]:
    """transformers' layer with random weights, half of its heads slow to forget, and ours with the same."""
    from transformers import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    config = Qwen3_5TextConfig(
        hidden_size=HIDDEN, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_key_heads=2,
        linear_num_value_heads=6, linear_key_head_dim=12, linear_value_head_dim=10, linear_conv_kernel_dim=3,
        rms_norm_eps=2e-5,
    )  # fmt: skip
    theirs = Qwen3_5GatedDeltaNet(config, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else random * 0.5)
            if name == "dt_bias":
                parameter[::2] -= 5.5
    ours = build_attention(kind(**changes), HIDDEN, RMSNorm(kind="rms", eps=2e-5))
    assert isinstance(ours, GatedDelta)
    stored = theirs.state_dict()
    tensors = dict(zip(("query", "key", "value"), stored["in_proj_qkv.weight"].split([24, 24, 60]), strict=True))
    tensors |= {name: stored[f"{tensor}.weight"] for name, tensor in THEIRS.items()}
    tensors |= {"conv": stored["conv1d.weight"], "out_norm": stored["norm.weight"]}
    with torch.no_grad():
        for name, tensor in tensors.items():
            weight = ours.get_parameter(f"{name}.weight")
            weight.copy_(tensor.view(weight.shape))
        ours.decay_bias.copy_(stored["dt_bias"].view(1, -1, 1, 1))
        ours.rate.copy_(-stored["A_log"].exp().view(1, -1, 1, 1))
    return theirs, ours


def both() -> tuple[Tensor, Tensor]:
    theirs, ours = pair()
    x = tokens()
    with torch.no_grad():
        return theirs(x), whole(ours, x)


@pytest.mark.parametrize("distinct", [S, 1, 2], ids=["random", "one token repeated", "two in turn"])
def test_a_layer_is_transformers_layer(distinct: int) -> None:
    theirs, ours = pair()
    x = tokens(distinct)
    with torch.no_grad():
        assert psnr(theirs(x), whole(ours, x)) >= 100


@pytest.mark.parametrize("distinct", [S, 1, 2], ids=["random", "one token repeated", "two in turn"])
def test_padded_calls_and_single_tokens_are_the_whole(distinct: int) -> None:
    theirs, ours = pair()
    x = tokens(distinct)
    with torch.no_grad():
        assert psnr(theirs(x), by_calls(ours, x, CALLS)) >= 100


def no_unit_length(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.unit = torch.nn.Identity()  # type: ignore[assignment]


def key_heads_in_turn(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    for name in ("value", "gate"):
        weight = ours.get_parameter(f"{name}.weight")
        weight.copy_(weight.view(3, 2, 10, HIDDEN).transpose(0, 1).reshape(weight.shape))


def gate_by_sigmoid(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.spec = ours.spec.model_copy(update={"gate": "sigmoid"})


def twice_corrected(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.spec = ours.spec.model_copy(update={"negative": True})


def no_decay_bias(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.decay_bias.zero_()


def one_more_in_the_norm(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.out_norm.weight.add_(1)  # type: ignore[union-attr, operator]


def queries_of_half_the_length(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.query_scale *= 0.5


@pytest.mark.parametrize(
    "mutate",
    [
        no_unit_length,
        key_heads_in_turn,
        gate_by_sigmoid,
        twice_corrected,
        no_decay_bias,
        one_more_in_the_norm,
        queries_of_half_the_length,
    ],
)
def test_a_mechanism_that_is_wrong_is_seen(
    mutate: Callable[[GatedDelta, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair()
    x = tokens()
    with torch.no_grad():
        mutate(ours, monkeypatch)
        assert psnr(theirs(x), whole(ours, x)) < 60


def test_padding_that_writes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair()
    x, right = tokens(), module.delta_rule

    def writing(*given: Tensor) -> tuple[Tensor, Tensor]:
        *most, beta, state = given
        return right(*most, beta + 0.5 * (beta == 0), state)

    monkeypatch.setattr(module, "delta_rule", writing)
    with torch.no_grad():
        assert psnr(theirs(x), by_calls(ours, x, CALLS)) < 60


def test_a_recurrence_that_begins_anew_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair()
    x = tokens()
    begin_anew(monkeypatch)
    with torch.no_grad():
        assert psnr(theirs(x), by_calls(ours, x, CALLS)) < 60


def test_correcting_twice_and_the_other_gate_are_what_they_say() -> None:
    """OLMo-Hybrid's beta and Kimi's gate, by the weights that make them of Qwen3.5's."""
    _, usual = pair()
    _, ours = pair(negative=True, gate="sigmoid")
    x = tokens()
    assert psnr(whole(usual, x), whole(ours, x)) < 40
