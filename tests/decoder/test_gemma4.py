"""Gemma 4, every combination of its mechanisms: against transformers, called in chunks, folded, scaled; and mutants."""

import random
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import Pair, gemma4
from figures import psnr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreai_recipes.decoder import model as model_module
from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.primitives import experts, mlp, per_layer
from coreai_recipes.primitives.attention import Attention, build_attention
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.primitives.layer import Form
from coreai_recipes.primitives.layer_inputs import Angles, LayerInputs
from coreai_recipes.primitives.rotary import Rotary, build_rotary, fold_order
from coreai_recipes.recipe.schema import LayerKind, ProportionalRotary, Recipe, RMSNorm, RotaryFold
from coreai_recipes.verification.figures import snr_min
from coreai_recipes.verification.reference import keep_all
from coreai_recipes.weights import folding

CONTEXT, PREFILL, SCORE, WINDOW = 64, 16, 5, 7
PSNR_FLOOR, SNR_MIN_FLOOR, FOLD_FLOOR = 100, 80, 120
LAST = 131071  # of Gemma 4's positions
MECHANISMS = ("per_layer", "sharing", "k_eq_v", "experts")
COMBINATIONS = [dict(zip(MECHANISMS, switches, strict=True)) for switches in product((False, True), repeat=4)]
FOLDED = Form(folded="contiguous")


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


def described(switches: dict[str, bool]) -> str:
    return " ".join(name for name, on in switches.items() if on) or "none"


@cache
def whole() -> Pair:
    """All mechanisms at once."""
    return gemma4()


@cache
def separate_values() -> Pair:
    return gemma4(k_eq_v=False)


def random_ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 131, (1, length), generator=torch.Generator().manual_seed(seed))


def reference_logits(pair: Pair, ids: Tensor) -> Tensor:
    """transformers' logits of every position."""
    logits: Tensor = pair.model(ids, **keep_all(pair.model, ids.shape[1])).logits
    return logits


def figures(pair: Pair, decoder: Decoder, ids: Tensor) -> tuple[float, float]:
    """PSNR and SNR_min of the logits against transformers."""
    theirs, ours = reference_logits(pair, ids), decoder(ids)
    return psnr(theirs, ours), snr_min(theirs[0], ours[0])


def in_calls(decoder: Decoder, ids: Tensor, seed: int) -> Tensor:
    """The logits of `ids` by calls of 1, SCORE or PREFILL tokens on states, padded, cut at random."""
    draw, states, found, position = random.Random(seed), decoder.make_states(), [], 0
    while position < ids.shape[1]:
        queries = draw.choice((1, SCORE, PREFILL))
        count = min(draw.randint(1, queries), ids.shape[1] - position)
        padding = torch.full((1, queries - count), draw.randrange(131))
        given_ids = torch.cat((ids[:, position : position + count], padding), 1)
        found.append(decoder(given_ids, position, count, states)[:, :count])
        position += count
    return torch.cat(found, 1)


# --- every combination ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", COMBINATIONS, ids=described)
@settings(max_examples=3, derandomize=True, deadline=None, database=None)
@given(window=st.integers(2, 12), seed=st.integers(0, 99), length=st.integers(13, CONTEXT))
def test_any_combination_equals_transformers_and_itself_in_calls(
    switches: dict[str, bool], window: int, seed: int, length: int
) -> None:
    """Prompts go beyond the window; chunks may be longer than it."""
    pair, ids = gemma4(**switches, seed=seed, sliding_window=window), random_ids(length, seed)
    decoder = pair.decoder()
    found_psnr, found_snr = figures(pair, decoder, ids)
    assert found_psnr >= PSNR_FLOOR
    assert found_snr >= SNR_MIN_FLOOR
    assert psnr(decoder(ids), in_calls(decoder, ids, seed)) >= PSNR_FLOOR


@pytest.mark.parametrize("switches", COMBINATIONS, ids=described)
def test_a_scaled_residual_stream_changes_no_bit_in_float32(switches: dict[str, bool]) -> None:
    pair, ids = gemma4(**switches), random_ids(20)
    plain, scaled = pair.decoder(), pair.decoder(form=Form(residual_scale=2.0**-7))
    assert torch.equal(scaled.hidden(ids), plain.hidden(ids) * 2.0**-7)
    assert torch.equal(scaled(ids), plain(ids))


@pytest.mark.parametrize("position", [0, 4096, LAST - 19])
@pytest.mark.parametrize("switches", COMBINATIONS, ids=described)
def test_a_folded_decoder_equals_the_plain_one_at_every_distance(switches: dict[str, bool], position: int) -> None:
    pair, ids = gemma4(**switches), random_ids(20)
    plain, folded = pair.decoder()(ids, position), pair.decoder(form=FOLDED)(ids, position)
    assert psnr(plain, folded) >= FOLD_FLOOR
    assert snr_min(plain[0], folded[0]) >= FOLD_FLOOR - 20


def test_a_folded_decoder_equals_the_plain_one_in_calls() -> None:
    ids = random_ids(CONTEXT)
    for pair in (whole(), separate_values()):
        plain, folded = pair.decoder(), pair.decoder(form=Form(folded="contiguous", residual_scale=2.0**-5))
        assert psnr(plain(ids), in_calls(folded, ids, 3)) >= PSNR_FLOOR


# --- the fold at Gemma 4's own size ---------------------------------------------------------------------------------

GLOBAL = ProportionalRotary(kind="proportional", factor=0.25, theta=1e6)


@pytest.mark.parametrize("position", [0, 4096, LAST])
def test_the_folded_rotary_turns_128_of_512_dimensions_by_the_same_bits(position: int) -> None:
    plain, folded = build_rotary(GLOBAL, 512), build_rotary(GLOBAL, 512, fold="contiguous")
    order = fold_order(GLOBAL, 512)
    assert order is not None
    assert (len(plain.inv_freq), len(folded.inv_freq)) == (256, 64)
    assert torch.equal(torch.tensor(folded.inv_freq), torch.tensor(plain.inv_freq[:64]))
    x, positions = torch.randn(1, 3, 1, 512), torch.tensor([[position]])
    assert torch.equal(folded(x[..., list(order)], positions), plain(x, positions)[..., list(order)])


def attention_pair(k_eq_v: bool) -> tuple[LayerKind, Attention, Attention]:
    """A global attention with heads of 512, plain and folded, of the same random weights."""
    kind = whole().recipe.model.kinds["full"].model_dump()
    kind["attention"] |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 512, "k_eq_v": k_eq_v}
    data = whole().recipe.model_dump()
    data["model"]["kinds"]["full"] = kind
    data["model"]["kinds"]["full_shared"]["attention"] |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 512}
    recipe = Recipe.model_validate(data)
    spec, norm = recipe.model.kinds["full"], RMSNorm(kind="rms", eps=1e-6)
    plain, folded = (build_attention(spec, 48, norm, is_folded) for is_folded in (None, "contiguous"))
    assert isinstance(plain, Attention)
    assert isinstance(folded, Attention)
    index = recipe.model.layer_kinds.index("full")
    for name, parameter in plain.named_parameters():
        flat = torch.randn(parameter.shape[:2] if parameter.shape[0] > 1 else (parameter.numel(),))
        weight = 1 + 0.2 * flat if "norm" in name else flat * 48**-0.5
        parameter.copy_(weight.view(parameter.shape))
        other = folded.get_parameter(name)
        rewrite = folding.stored_as(recipe, f"layers.{index}.attention.{name}", FOLDED)
        other.copy_(rewrite.apply(weight).view(other.shape))
    return spec, plain, folded


def attend(attention: Attention, x: Tensor, start: int) -> Tensor:
    rotary = attention.rotary
    assert isinstance(rotary, Rotary)
    positions = torch.arange(start, start + x.shape[3])
    cos, sin = (half.transpose(1, 2).unsqueeze(2) for half in rotary.angles(positions[None]))
    out: Tensor = attention(x, LayerInputs(mask(positions, positions, None), cos, sin), NoCache())
    return out.squeeze(2).transpose(1, 2)


@pytest.mark.parametrize("start", [0, 4096, LAST - 15])
@pytest.mark.parametrize("k_eq_v", [True, False])
def test_a_folded_attention_equals_the_plain_one(k_eq_v: bool, start: int) -> None:
    _, plain, folded = attention_pair(k_eq_v)
    x = torch.randn(1, 48, 1, 16)
    ours, theirs = attend(folded, x, start), attend(plain, x, start)
    assert psnr(theirs, ours) >= FOLD_FLOOR
    assert snr_min(theirs[0], ours[0]) >= FOLD_FLOOR - 20


# --- mutants --------------------------------------------------------------------------------------------------------


def with_values(take: Callable[[Attention, Tensor, Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The attention's keys and values, where K = V is `take(attention, k, normed, turned)`."""
    plain = Attention._keys_and_values

    def keys_and_values(self: Attention, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        keys, values = plain(self, x, angles)
        if self.v is not None:
            return keys, values
        assert self.k is not None
        assert self.k_norm is not None
        assert self.v_norm is not None
        k = self.k(x).view(self.num_kv_heads, self.head_dim, 1, x.shape[3])
        normed = self.k_norm(k)
        v = self.v_norm(take(self, k, normed, self.rotary.turn(normed, angles)))  # type: ignore[operator, union-attr]
        return keys, v.squeeze(2).transpose(1, 2)

    return keys_and_values


class FirstOwner(NoCache):
    """A cache of the first layer of each kind, which has its head_dim, in place of the last."""

    first: dict[int, tuple[Tensor, Tensor]] = {}  # noqa: RUF012

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        seen = super().update(keys, values)
        self._first = self.first.setdefault(keys.shape[2], seen)
        return seen

    def read(self) -> tuple[Tensor, Tensor]:
        return self._first


def changed(recipe: Recipe, change: Callable[[dict[str, Any]], None]) -> Recipe:
    data = recipe.model_dump()
    data["reference"] = None
    change(data)
    return Recipe.model_validate(data)


def pair_contiguously(data: dict[str, Any]) -> None:
    for name in ("full", "full_shared"):
        # as many dimensions turn: 8 of 36
        data["model"]["kinds"][name]["rotary"] = {"kind": "partial", "factor": 8 / 36, "theta": 1e6}


def drop_layer_scalar(data: dict[str, Any]) -> None:
    data["model"]["layer_scalar"] = False


def drop_v_norm(data: dict[str, Any]) -> None:
    for kind in data["model"]["kinds"].values():
        kind["attention"]["v_norm"] = False


RECIPES = {
    "a contiguous rotary": pair_contiguously,
    "no layer scalar": drop_layer_scalar,
    "values without their norm": drop_v_norm,
}

_scaled = per_layer.scaled


def without(factor: float) -> Callable[[Tensor, float], Tensor]:
    """Scaling by anything but `factor`."""
    return lambda x, by: x if by == factor else _scaled(x, by)


# what is put in place of what
PATCHES: dict[str, tuple[Any, str, Any]] = {
    "values after k_norm": (Attention, "_keys_and_values", with_values(lambda _, k, normed, turned: normed)),
    "values after the rotary": (Attention, "_keys_and_values", with_values(lambda _, k, normed, turned: turned)),
    "one mask for both kinds": (CallShape, "mask_group", lambda self, name: "sliding"),
    "the first layer's cache is shared": (model_module, "NoCache", FirstOwner),
    "a table without its scale": (per_layer, "scaled", without(12**0.5)),
}


def mutant_psnr(decoder: Decoder) -> float:
    ids = random_ids(50)
    return figures(whole(), decoder, ids)[0]


@pytest.mark.parametrize("mutant", RECIPES)
def test_a_recipe_that_says_something_else_is_seen(mutant: str) -> None:
    assert mutant_psnr(whole().decoder(changed(whole().recipe, RECIPES[mutant]))) < 40


@pytest.mark.parametrize("mutant", PATCHES)
def test_a_fault_in_a_mechanism_is_seen(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name, replacement = PATCHES[mutant]
    monkeypatch.setattr(target, name, replacement)
    FirstOwner.first.clear()
    assert mutant_psnr(whole().decoder()) < 40


def test_the_mutants_take_the_values_that_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is patched in is right when it takes the projection's own output."""
    monkeypatch.setattr(Attention, "_keys_and_values", with_values(lambda _, k, normed, turned: k))
    assert mutant_psnr(whole().decoder()) >= PSNR_FLOOR


def test_the_scale_of_the_per_layer_sum_is_seen_by_eps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm follows what it multiplies; test_per_layer.py sees it where it stands."""
    monkeypatch.setattr(per_layer, "scaled", without(2**-0.5))
    assert 60 < mutant_psnr(whole().decoder()) < PSNR_FLOOR


@pytest.mark.parametrize("module", [mlp, per_layer, experts])
def test_a_gelu_of_the_error_function_is_seen(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACTIVATIONS", {"gelu_tanh": F.gelu})
    assert mutant_psnr(whole().decoder()) < 80


@pytest.mark.parametrize("pair", [whole, separate_values])
def test_columns_of_o_that_are_permuted_wrongly_are_seen(
    pair: Callable[[], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where K = V they must be, where it is not they must not."""
    orders, ids = folding._orders, random_ids(50)

    def swapped(recipe: Recipe, kind: LayerKind, name: str, parts: list[str], fold: RotaryFold) -> Any:
        if parts[-2:] != ["o", "weight"]:
            return orders(recipe, kind, name, parts, fold)
        right = orders(recipe, kind, name, parts, fold)[1]
        return None, fold_order(kind.rotary, kind.attention.head_dim) if right is None else None

    monkeypatch.setattr(folding, "_orders", swapped)
    assert psnr(reference_logits(pair(), ids), pair().decoder(form=FOLDED)(ids)) < 40
