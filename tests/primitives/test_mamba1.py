"""Layers of Mamba-1 against transformers' Mamba, Falcon Mamba and Jamba: whole, in padded calls, on repeated tokens;
mutants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from figures import psnr
from mixers import CALLS, HIDDEN, S, begin_anew, by_calls, let_padding_write, tokens, whole
from torch import Tensor

from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.mamba1 import Mamba1
from coreai_recipes.primitives.scan import scan
from coreai_recipes.recipe.schema import LayerKind, RMSNorm

CHANNELS, KEYS, RANK = 2 * HIDDEN, 12, 5
NORMS = {"mamba": None, "falcon_mamba": "none", "jamba": "w"}
WHOLE = {"conv": "conv1d", "selection": "x_proj", "step_up": "dt_proj", "last": "out_proj"}
NORMED = {"step_norm": "dt_layernorm", "key_norm": "b_layernorm", "query_norm": "c_layernorm"}


def kind(family: str) -> LayerKind:
    weight = NORMS[family]
    return LayerKind.model_validate({
        "attention": {
            "kind": "mamba1", "channels": CHANNELS, "key_dim": KEYS, "step_rank": RANK, "taps": 3, "bias": True,
            "selection_norm": {"kind": "rms", "eps": 3e-5, "weight": weight} if weight else None,
        },
        "rotary": {"kind": "none"},
        "mlp": {"kind": "none"},
    })  # fmt: skip


def their_mixer(family: str) -> Any:
    import transformers
    from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer
    from transformers.models.mamba.modeling_mamba import MambaMixer

    sizes = {"hidden_size": HIDDEN, "state_size": KEYS, "time_step_rank": RANK, "conv_kernel": 3, "use_bias": True}
    if family == "mamba":
        return MambaMixer(transformers.MambaConfig(**sizes), 0)
    if family == "falcon_mamba":
        config = transformers.FalconMambaConfig(**sizes, mixer_rms_eps=3e-5)
        return FalconMambaMixer(
            config, 0, initialize_mixer_weights=False
        )  # which would need the norms that it makes later
    config = transformers.JambaConfig(
        hidden_size=HIDDEN, mamba_d_state=KEYS, mamba_d_conv=3, mamba_dt_rank=RANK, mamba_proj_bias=True,
        rms_norm_eps=3e-5,
    )  # fmt: skip
    return JambaMambaMixer(config, 0)


def pair(family: str = "jamba") -> tuple[Any, Mamba1]:
    """transformers' mixer with random weights, half of its channels slow to forget, and ours with the same."""
    theirs = their_mixer(family).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            is_matrix = parameter.dim() > 1 and name != "A_log"
            parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5 if is_matrix else random * 0.5)
            if name == "dt_proj.bias":
                parameter[::2] -= 5.5
    ours = build_attention(kind(family), HIDDEN, RMSNorm(kind="rms", eps=2e-5))
    assert isinstance(ours, Mamba1)
    stored = theirs.state_dict()
    tensors = {
        f"{name}.{leaf}": part
        for leaf in ("weight", "bias")
        for name, part in zip(("mixed", "gate"), stored[f"in_proj.{leaf}"].chunk(2), strict=True)
    }
    for name, other in (WHOLE | NORMED).items():
        leaves = (leaf for leaf in ("weight", "bias") if f"{other}.{leaf}" in stored)
        tensors |= {f"{name}.{leaf}": stored[f"{other}.{leaf}"] for leaf in leaves}
    tensors |= {"rate": -stored["A_log"].exp(), "skip": stored["D"]}
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = ours.get_parameter(name)
            parameter.copy_(tensor.view(parameter.shape))
    assert tensors.keys() == dict(ours.named_parameters()).keys()
    return theirs, ours


def both(family: str) -> tuple[Tensor, Tensor]:
    theirs, ours = pair(family)
    with torch.no_grad():
        return theirs(tokens()), whole(ours, tokens())


@pytest.mark.parametrize("distinct", [S, 1, 2], ids=["random", "one token repeated", "two in turn"])
@pytest.mark.parametrize("family", NORMS)
def test_a_mixer_and_its_padded_calls_and_single_tokens_are_transformers_mixer(family: str, distinct: int) -> None:
    theirs, ours = pair(family)
    x = tokens(distinct)
    with torch.no_grad():
        expected = theirs(x)
    assert psnr(expected, whole(ours, x)) >= 100
    assert psnr(expected, by_calls(ours, x, CALLS)) >= 100


def keys_for_queries(ours: Mamba1) -> None:
    ours.selection.weight[RANK:] = ours.selection.weight[RANK:].roll(KEYS, 0)


def gate_for_channels(ours: Mamba1) -> None:
    ours.gate, ours.mixed = ours.mixed, ours.gate


def one_rate_for_all_numbers(ours: Mamba1) -> None:
    ours.rate.copy_(ours.rate.mean(2, keepdim=True).expand_as(ours.rate))


def no_skip(ours: Mamba1) -> None:
    ours.skip.zero_()


def no_step_bias(ours: Mamba1) -> None:
    assert ours.step_up.bias is not None
    ours.step_up.bias.zero_()


def oldest_tap_missing(ours: Mamba1) -> None:
    ours.conv.weight[:, :, 0] = 0


def keys_not_normed(ours: Mamba1) -> None:
    ours.key_norm = torch.nn.Identity()


def steps_not_normed(ours: Mamba1) -> None:
    ours.step_norm = torch.nn.Identity()


@pytest.mark.parametrize(
    "mutate",
    [
        keys_for_queries,
        gate_for_channels,
        one_rate_for_all_numbers,
        no_skip,
        no_step_bias,
        oldest_tap_missing,
        keys_not_normed,
        steps_not_normed,
    ],
)
def test_a_mechanism_that_is_wrong_is_seen(mutate: Callable[[Mamba1], None]) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        expected = theirs(tokens())
        mutate(ours)
        assert psnr(expected, whole(ours, tokens())) < 60


def test_padding_that_writes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        expected = theirs(tokens())
    let_padding_write(monkeypatch)
    assert psnr(expected, by_calls(ours, tokens(), CALLS)) < 60


def test_a_recurrence_that_begins_anew_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        expected = theirs(tokens())
    begin_anew(monkeypatch)
    assert psnr(expected, by_calls(ours, tokens(), CALLS)) < 60


@pytest.mark.parametrize("chunk", [1, 7, 16, 150])
def test_a_scan_is_one_token_after_the_other_whatever_its_chunks_are(chunk: int) -> None:
    """Of numbers that forget a thousandth a token, a tenth, most, and so much that exp of it is zero in float32."""
    generator = torch.Generator().manual_seed(3)
    x, before = torch.randn(1, 3, 4, S, generator=generator), torch.randn(1, 3, 4, 1, generator=generator)
    rates = torch.tensor([1e-3, 0.1, 3.0, 300.0]).view(1, 1, 4, 1)
    g = -torch.rand(1, 3, 4, S, generator=generator) * rates
    state, states = before.double(), []
    for token in range(S):
        at = slice(token, token + 1)
        state = torch.exp(g[..., at].double()) * state + x[..., at].double()
        states.append(state)
    expected = torch.cat(states, 3)
    assert psnr(expected, scan(x, g, before, chunk).double()) >= 120
