"""One query's attention, its keys on the last axis of the scores or as channels, against the softmax written down."""

from typing import Any

import pytest
import torch
from figures import psnr
from torch import Tensor

from coreai_recipes.decoder.front import Front
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.primitives import alibi
from coreai_recipes.primitives.attention import AttentionCore
from coreai_recipes.primitives.cache import draft_mask, mask
from coreai_recipes.recipe.schema import LayerKind, Recipe

H, G, D, K = 6, 2, 20, 37
POSITION = 23  # keys behind it are hidden
HEADS = {"num_heads": H, "num_kv_heads": G, "head_dim": D}
LATENT = {
    "kind": "latent", "num_heads": H, "num_kv_heads": H, "q_rank": None, "kv_rank": 8, "nope_dim": 12, "rope_dim": 8,
    "value_dim": 14, "latent_norm": {"kind": "rms", "eps": 1e-6},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": True},
    "alibi": {"alibi": {"scaled": True}},
    "alibi in bfloat16, sinks and a softcap": {"alibi": {"rounding": "bfloat16"}, "sinks": True, "softcap": 2.0},
    "a scale": {"scale": 0.31},
    "latent": LATENT,
}


def kind_of(name: str) -> LayerKind:
    attention = CASES[name] if name == "latent" else {"kind": "full", **HEADS, **CASES[name]}
    rotary = {"kind": "full", "theta": 1e4} if name == "latent" else {"kind": "none"}
    mlp = {"kind": "gated", "activation": "silu", "intermediate_size": 8}
    return LayerKind.model_validate({"attention": attention, "rotary": rotary, "mlp": mlp})


def recipe_of(kind: LayerKind, **export: Any) -> Recipe:
    model = {
        "vocab_size": 9, "hidden_size": 24, "norm": {"kind": "rms", "eps": 1e-6}, "head": {"tied": True},
        "kinds": {"only": kind.model_dump()}, "layers": ["only"],
    }  # fmt: skip
    data = {"recipe": 1, "name": "r", "reference": None, "model": model, "weights": {"names": "llama"}}
    return Recipe.model_validate({**data, "export": {"context": 64, "functions": {"prefill": 4}, **export}})


def seen_by(kind: LayerKind, keys_last: bool) -> Tensor:
    """What the front adds to the scores of one query at POSITION over K rows."""
    spec, at = kind.attention, torch.tensor([POSITION])
    found = mask(torch.arange(K), at, None, keys_last)
    if spec.alibi is None:
        return found
    heads = spec.num_heads, spec.num_kv_heads
    return found + alibi.bias(spec.alibi, *heads, kind.score_scale, torch.arange(K), at, keys_last)


def written_down(kind: LayerKind, core: AttentionCore, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(1, H * E, 1, 1), head by head and in float64."""
    spec, heads = kind.attention, []
    for head in range(spec.num_heads):
        group = head // (spec.num_heads // spec.num_kv_heads)
        scores = keys[0, group].double() @ q[head, :, 0, 0].double() * kind.score_scale  # (K,)
        if spec.softcap is not None:
            scores = spec.softcap * torch.tanh(scores / spec.softcap)
        if spec.alibi is not None:
            slope = alibi.slopes(spec.alibi, spec.num_heads)[head]
            where = torch.arange(K, dtype=torch.float64)
            if spec.alibi.rounding == "bfloat16":
                fall = (slope * where).bfloat16().double() - torch.tensor(slope * POSITION).bfloat16().double()
            else:
                fall = slope * (where - POSITION)
            scores = scores + fall * (kind.score_scale if spec.alibi.scaled else 1.0)
        raised = torch.exp(scores[: POSITION + 1] - scores[: POSITION + 1].max())
        total = raised.sum()
        if core.sinks is not None:
            total = total + torch.exp(core.sinks[head].double() - scores[: POSITION + 1].max())
        heads.append((raised / total) @ values[0, group, : POSITION + 1, : core.value_dim].double())
    return torch.cat(heads).view(1, -1, 1, 1)


@pytest.mark.parametrize("keys_last", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_one_query_attends_as_the_softmax_written_down(name: str, keys_last: bool) -> None:
    kind = kind_of(name)
    spec, core = kind.attention, AttentionCore(kind)
    if core.sinks is not None:
        core.sinks.copy_(3 * torch.randn(H))
    q = 2 * torch.randn(H, spec.head_dim, 1, 1)
    keys, values = torch.randn(2, 1, spec.num_kv_heads, K, spec.head_dim)
    ours = core.attend(q, keys, values, seen_by(kind, keys_last))
    assert psnr(written_down(kind, core, q, keys, values), ours) >= 120


@pytest.mark.parametrize("name", ["plain", "alibi"])
def test_a_mask_has_the_same_entries_with_its_keys_last(name: str) -> None:
    kind = kind_of(name)
    channels, last = seen_by(kind, False), seen_by(kind, True)  # ([G], K, [H/G], 1), (1, [G], [H/G], K)
    assert last.shape == ((1, G, H // G, K) if name == "alibi" else (1, 1, 1, K))
    assert torch.equal(channels.permute(3, 0, 2, 1), last)


@pytest.mark.parametrize("window", [None, 8])
def test_a_drafts_mask_has_the_same_entries_with_its_keys_last(window: int | None) -> None:
    channels, last = (draft_mask(11, window, torch.tensor([9]), keys_last) for keys_last in (False, True))
    assert last.shape == (1, 1, 1, 11)
    assert torch.equal(channels.permute(0, 2, 3, 1), last)


def test_keys_are_the_last_axis_for_one_query_only() -> None:
    front = build_decoder(recipe_of(kind_of("alibi"))).front
    assert front.call(1).mask_shape("only") == (1, G, H // G, 96)
    assert front.call(4).mask_shape("only") == (G, 96, H // G, 4)


@pytest.mark.parametrize(
    ("context", "layout", "keys_last"),
    [
        (16384, "auto", True),
        (16385, "auto", False),
        (16385, "last", True),
        (64, "channels", False),
    ],
)
def test_the_layout_goes_by_the_context_unless_the_recipe_says_it(context: int, layout: str, keys_last: bool) -> None:
    recipe = recipe_of(kind_of("plain"), context=context, attention_layout=layout)
    assert recipe.export.keys_last == keys_last
    shape = Front(recipe, torch.nn.Identity()).call(1).mask_shape("only")
    assert shape[:3] == (1, 1, 1) if keys_last else shape[2:] == (1, 1)
