"""RG-LRU layers against transformers' RecurrentGemma: whole, in padded calls, on repeated tokens; mutants."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from figures import psnr
from mixers import CALLS, HIDDEN, S, begin_anew, by_calls, let_padding_write, tokens
from torch import Tensor

from coreai_recipes.primitives import rg_lru as module
from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.rg_lru import RGLRU
from coreai_recipes.recipe.schema import LayerKind, RMSNorm

CHANNELS, BLOCKS = 36, 3
GATES = {"input_gate": "rg_lru.input_gate", "keep_gate": "rg_lru.recurrent_gate"}
WHOLE = {"gate": "linear_y", "mixed": "linear_x", "conv": "conv_1d", "last": "linear_out"}


def kind() -> LayerKind:
    return LayerKind.model_validate({
        "attention": {
            "kind": "rg_lru", "channels": CHANNELS, "blocks": BLOCKS, "taps": 3, "activation": "gelu_tanh",
        },
        "rotary": {"kind": "none"},
        "mlp": {"kind": "none"},
    })  # fmt: skip


def pair() -> tuple[Any, RGLRU]:
    """transformers' block with random weights, half of its channels slow to forget, and ours with the same."""
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    config = RecurrentGemmaConfig(
        hidden_size=HIDDEN, lru_width=CHANNELS, num_attention_heads=BLOCKS, conv1d_width=3, num_hidden_layers=1
    )
    theirs = RecurrentGemmaRecurrentBlock(config, 0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else random * 0.5)
            if name.endswith("recurrent_param"):
                parameter[::2] -= 5.5
    ours = build_attention(kind(), HIDDEN, RMSNorm(kind="rms", eps=2e-5))
    assert isinstance(ours, RGLRU)
    stored = theirs.state_dict()
    tensors = {f"{name}.{leaf}": stored[f"{of}.{leaf}"] for name, of in WHOLE.items() for leaf in ("weight", "bias")}
    tensors |= {f"{name}.weight": stored[f"{of}_weight"].transpose(1, 2) for name, of in GATES.items()}
    tensors |= {f"{name}.bias": stored[f"{of}_bias"] for name, of in GATES.items()}
    tensors["rate"] = F.softplus(stored["rg_lru.recurrent_param"])
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameter = ours.get_parameter(name)
            parameter.copy_(tensor.reshape(parameter.shape))
    assert tensors.keys() == dict(ours.named_parameters()).keys()
    return theirs, ours


def theirs_of(theirs: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = theirs(x, torch.arange(x.shape[1])[None], None, use_cache=False)[0]
    return y


def both() -> tuple[Tensor, Tensor]:
    theirs, ours = pair()
    return theirs_of(theirs, tokens()), by_calls(ours, tokens(), [(S, S)])


@pytest.mark.parametrize("distinct", [S, 1, 2], ids=["random", "one token repeated", "two in turn"])
def test_a_block_and_its_padded_calls_and_single_tokens_are_transformers_block(distinct: int) -> None:
    theirs, ours = pair()
    x = tokens(distinct)
    expected = theirs_of(theirs, x)
    assert psnr(expected, by_calls(ours, x, [(S, S)])) >= 100
    assert psnr(expected, by_calls(ours, x, CALLS)) >= 100


def the_other_gates(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    ours.input_gate, ours.keep_gate = ours.keep_gate, ours.input_gate


def blocks_transposed(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    ours.input_gate.weight.copy_(ours.input_gate.weight.transpose(1, 2).clone())


def half_the_exponent(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "EXPONENT", -4.0)


def all_is_written(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "_share_written", torch.ones_like)


def oldest_tap_missing(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    ours.conv.weight[:, :, 0] = 0


def no_start(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch, "maximum", lambda written, _: written)


def padding_that_writes(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    let_padding_write(patch)


def begins_anew(ours: RGLRU, patch: pytest.MonkeyPatch) -> None:
    begin_anew(patch)


@pytest.mark.parametrize(
    "mutate",
    [
        the_other_gates,
        blocks_transposed,
        half_the_exponent,
        all_is_written,
        oldest_tap_missing,
        no_start,
        padding_that_writes,
        begins_anew,
    ],
)
def test_a_mechanism_that_is_wrong_is_seen(
    mutate: Callable[[RGLRU, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = pair()
    expected = theirs_of(theirs, tokens())
    with torch.no_grad():
        mutate(ours, monkeypatch)
    assert psnr(expected, by_calls(ours, tokens(), CALLS)) < 60
