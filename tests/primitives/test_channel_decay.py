"""Layers whose matrices fade by channel against transformers' Kimi Linear: whole, in padded calls, on repeated tokens;
mutants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from figures import psnr
from mixers import CALLS, HIDDEN, S, by_calls, tokens, whole
from torch import Tensor

from coreai_recipes.primitives import delta_rule as module
from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.decays import ColumnDecays, column_decays
from coreai_recipes.primitives.gated_delta import GatedDelta
from coreai_recipes.recipe.schema import LayerKind, RMSNorm

HEADS, D = 3, 12
OF = {"kind": "gated_delta", "gate": "sigmoid", "decay": "channel"}
SIZES = {
    "num_key_heads": HEADS, "num_value_heads": HEADS, "key_dim": D, "value_dim": D, "taps": 3, "gate_rank": D,
    "decay_rank": D,
}  # fmt: skip
THEIRS = {
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "gate_down": "g_a_proj", "gate": "g_b_proj",
    "beta": "b_proj", "decay_down": "forget_gate.f_a_proj", "decay": "forget_gate.f_b_proj", "conv": "conv1d",
    "out_norm": "o_norm", "last": "o_proj",
}  # fmt: skip


def pair() -> tuple[Any, GatedDelta]:
    """transformers' layer with random weights, half of its channels slow to forget, and ours with the same."""
    from transformers import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    config = KimiLinearConfig(
        hidden_size=HIDDEN, num_hidden_layers=1, layer_types=["linear_attention"], linear_head_dim=D,
        linear_num_heads=HEADS, linear_conv_kernel_dim=3, rms_norm_eps=2e-5,
    )  # fmt: skip
    theirs = KimiLinearDeltaAttention(config, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.dim() > 1 and "A_log" not in name
            parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5 if is_matrix else random * 0.5)
            if name.endswith("dt_bias"):
                parameter[::2] -= 5.5
    kind = LayerKind.model_validate({
        "attention": {**OF, **SIZES},
        "rotary": {"kind": "none"},
        "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 88},
    })  # fmt: skip
    ours = build_attention(kind, HIDDEN, RMSNorm(kind="rms", eps=2e-5))
    assert isinstance(ours, GatedDelta)
    stored = theirs.state_dict()
    tensors = {f"{name}.weight": stored[f"{tensor}.weight"] for name, tensor in THEIRS.items()}
    tensors["decay_bias"] = stored["forget_gate.dt_bias"]
    tensors["rate"] = -stored["forget_gate.A_log"].exp()
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = ours.get_parameter(name)
            parameter.copy_(tensor.view(parameter.shape))
    assert tensors.keys() == dict(ours.named_parameters()).keys()
    return theirs, ours


@pytest.mark.parametrize("distinct", [S, 1, 2], ids=["random", "one token repeated", "two in turn"])
def test_a_layer_and_its_padded_calls_and_single_tokens_are_transformers_layer(distinct: int) -> None:
    theirs, ours = pair()
    x = tokens(distinct)
    with torch.no_grad():
        expected = theirs(x)
        assert psnr(expected, whole(ours, x)) >= 100
        assert psnr(expected, by_calls(ours, x, CALLS)) >= 100


def by_head(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "column_decays", lambda g: column_decays(g.mean(2, keepdim=True).expand(g.shape)))


def gate_by_silu(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.spec = ours.spec.model_copy(update={"gate": "silu"})


def rates_of_other_heads(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.rate.copy_(ours.rate.roll(1, 1))


def channels_of_other_heads(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.decay.weight.copy_(ours.decay.weight.view(HEADS, D, D, 1, 1).transpose(0, 1).reshape(HEADS * D, D, 1, 1))


def no_decay_bias(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    ours.decay_bias.zero_()


def largest_blocks_alone(ours: GatedDelta, patch: pytest.MonkeyPatch) -> None:
    def few(g: Tensor) -> ColumnDecays:
        found = column_decays(g)
        return found._replace(halves=found.halves[-1:])

    patch.setattr(module, "column_decays", few)


@pytest.mark.parametrize(
    "mutate",
    [by_head, gate_by_silu, rates_of_other_heads, channels_of_other_heads, no_decay_bias, largest_blocks_alone],
)
def test_a_mechanism_that_is_wrong_is_seen(
    mutate: Callable[[GatedDelta, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair()
    x = tokens()
    with torch.no_grad():
        mutate(ours, monkeypatch)
        assert psnr(theirs(x), whole(ours, x)) < 60


@pytest.mark.parametrize("size", [2, 5, 32])
def test_each_pair_of_tokens_is_in_one_block(size: int) -> None:
    """What each has left, by the blocks, is exp of the sum of what lies between; and no factor exceeds 1."""
    g = -torch.rand(1, 3, 4, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    found = column_decays(g)
    sums = g.cumsum(3)
    between = torch.exp(sums.unsqueeze(3) - sums.unsqueeze(4)).triu(1)  # (1, 3, 4, j, i)
    blocks = sum((left.unsqueeze(4) * left.unsqueeze(3) * pairs for left, pairs in found.halves), torch.zeros(()))
    assert torch.allclose(blocks, between)
    assert all(float(left.max()) <= 1 for left, _ in found.halves)
