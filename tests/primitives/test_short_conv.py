"""The short convolution against transformers' LFM2: whole, in calls with padding, from what was kept, its mutants."""

from typing import Any

import pytest
import torch
from figures import psnr
from torch import Tensor

from coreai_recipes.decoder.front import front
from coreai_recipes.decoder.model import Decoder, build_decoder, fill
from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.cache import NoCache
from coreai_recipes.primitives.carried import tail_placement
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.short_conv import ShortConvolution
from coreai_recipes.recipe.schema import LayerKind, Recipe, RMSNorm

HIDDEN, S, CONTEXT = 48, 21, 256
NORM = RMSNorm(kind="rms", eps=1e-5)
NAMES = {"input": "in_proj", "conv": "conv", "last": "out_proj"}


def kind(taps: int, bias: bool) -> dict[str, Any]:
    return {
        "attention": {"kind": "short_conv", "channels": HIDDEN, "taps": taps, "bias": bias},
        "rotary": {"kind": "none"},
        "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 88},
    }


def pair(taps: int, bias: bool) -> tuple[Any, ShortConvolution]:
    """transformers' convolution with random weights and ours with the same."""
    from transformers import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    config = Lfm2Config(
        hidden_size=HIDDEN, num_hidden_layers=1, layer_types=["conv"], conv_L_cache=taps, conv_bias=bias
    )
    theirs = Lfm2ShortConv(config, 0).eval()
    torch.manual_seed(taps)
    for tensor in theirs.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * (1.5 * tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.5))
    ours = build_attention(LayerKind.model_validate(kind(taps, bias)), HIDDEN, NORM)
    assert isinstance(ours, ShortConvolution)
    for name, parameter in ours.named_parameters():
        owner, leaf = name.split(".")
        with torch.no_grad():
            parameter.copy_(theirs.state_dict()[f"{NAMES[owner]}.{leaf}"].view(parameter.shape))
    return theirs, ours


def both(taps: int, bias: bool) -> tuple[Tensor, Tensor]:
    theirs, ours = pair(taps, bias)
    x = torch.randn(1, S, HIDDEN)
    with torch.no_grad():
        return theirs(x), run(ours, x)


def run(ours: ShortConvolution, x: Tensor) -> Tensor:
    y: Tensor = ours(x.transpose(1, 2).unsqueeze(2), LayerInputs(), NoCache())
    return y.squeeze(2).transpose(1, 2)


def reversed_taps(ours: ShortConvolution) -> None:
    ours.conv.weight.copy_(ours.conv.weight.flip(2))


def without_the_oldest_tap(ours: ShortConvolution) -> None:
    ours.conv.weight[:, :, 0] = 0


def swapped_gates(ours: ShortConvolution) -> None:
    before, after, values = ours.input.weight.clone().chunk(3)
    ours.input.weight.copy_(torch.cat((after, before, values)))


@pytest.mark.parametrize("mutate", [reversed_taps, without_the_oldest_tap, swapped_gates])
def test_a_mechanism_that_is_wrong_is_seen(mutate: Any) -> None:
    theirs, ours = pair(3, False)
    x = torch.randn(1, S, HIDDEN)
    with torch.no_grad():
        mutate(ours)
        assert psnr(theirs(x), run(ours, x)) < 40


def decoder(score: int | None = 5) -> Decoder:
    """Two convolutions around a full attention, with random weights."""
    full = {**kind(3, False), "attention": {"kind": "full", "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}}
    recipe = Recipe.model_validate(
        {
            "recipe": 1,
            "name": "small-convolutions",
            "reference": None,
            "model": {
                "vocab_size": 131,
                "hidden_size": HIDDEN,
                "norm": {"kind": "rms", "eps": 1e-5},
                "head": {"tied": True},
                "kinds": {"conv": kind(3, True), "long": kind(7, False), "full": full},
                "layers": ["conv", "full", "long", "conv"],
            },
            "weights": {"names": "lfm2"},
            "export": {"context": CONTEXT, "functions": {"prefill": 64, "score": score}},
        }
    )
    made, generator = build_decoder(recipe), torch.Generator().manual_seed(0)
    shapes = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}

    def read(name: str) -> Tensor:
        return torch.randn(shapes[name], generator=generator) * (1.0 if "norm" in name else 0.3)

    fill(made, read)
    return made


def ids(length: int) -> Tensor:
    return torch.randint(0, 131, (1, length), generator=torch.Generator().manual_seed(1))


def by_calls(made: Decoder, tokens: Tensor, calls: list[tuple[int, int, int]]) -> Tensor:
    """The logits of all positions by calls (position, tokens, real ones), padded with another token, each from what
    was carried at its position; what is called again at an earlier one was guessed wrong."""
    states, found = made.make_states(), torch.zeros(1, tokens.shape[1], 131)
    kept: dict[int, dict[str, Tensor]] = {}
    for index, (position, size, count) in enumerate(calls):
        given = torch.full((1, size), 130)
        given[:, :count] = tokens[:, position : position + count]
        later = calls[index + 1][0] if index + 1 < len(calls) else position + count
        given[:, max(later - position, 0) : count] = 7
        kept.setdefault(position, {name: states[name].clone() for name in made.front.carried})
        states |= {name: tensor.clone() for name, tensor in kept[position].items()}
        with torch.no_grad():
            found[:, position : position + count] = made(given, position, count, states)[:, :count]
    return found


def test_calls_with_padding_then_single_tokens_are_the_whole() -> None:
    made, tokens = decoder(), ids(190)
    calls = [(0, 8, 7), (7, 8, 2), (9, 8, 6), (15, 64, 41), (56, 64, 64), (120, 64, 37)]
    calls += [(position, 1, 1) for position in range(157, 190)]
    assert psnr(made(tokens), by_calls(made, tokens, calls)) >= 120


def test_calling_again_from_what_was_kept_is_exact() -> None:
    made, tokens = decoder(), ids(40)
    calls = [(0, 8, 8), (8, 8, 8), (16, 5, 5), (16, 8, 1), (17, 5, 5), (17, 8, 2), (19, 1, 1), (20, 1, 1)]
    assert psnr(made(tokens)[:, :21], by_calls(made, tokens, calls)[:, :21]) >= 120


def from_the_padded_end(rows: int, queries: int, count: Tensor) -> Tensor:
    return tail_placement(rows, queries, torch.full_like(count, queries))


def one_position_late(rows: int, queries: int, count: Tensor) -> Tensor:
    return tail_placement(rows, queries, count - 1)


@pytest.mark.parametrize("wrong", [from_the_padded_end, one_position_late])
def test_a_tail_of_other_positions_is_seen(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, tokens = decoder(), ids(30)
    monkeypatch.setattr(front, "tail_placement", wrong)
    assert psnr(made(tokens), by_calls(made, tokens, [(0, 16, 11), (11, 16, 16), (27, 16, 3)])) < 60


def test_a_convolution_that_begins_anew_is_seen() -> None:
    made, tokens = decoder(), ids(30)
    found = by_calls(made, tokens, [(0, 16, 16), (16, 16, 14)])
    states = made.make_states()
    with torch.no_grad():
        made(tokens[:, :16], 0, 16, states)
        states |= {name: torch.zeros_like(states[name]) for name in made.front.carried}
        anew = made(tokens[:, 16:], 16, 14, states)
    assert psnr(found[:, 16:], anew) < 60


def test_nothing_of_the_padding_enters_a_tail() -> None:
    """Not even what is no number."""
    made = decoder()
    with torch.no_grad():
        made.embedding.weight[130] = float("nan")  # type: ignore[index]
    found = by_calls(made, ids(30) % 130, [(0, 16, 9), (9, 16, 2), (11, 16, 16), (27, 1, 1), (28, 1, 1), (29, 1, 1)])
    assert found[..., :130].isfinite().all()  # the table is the head too
