"""Every scaling times every way to turn, against transformers' own classes bit for bit."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rotary_families import ours, theirs
from rotary_scalings import BASES, SCALINGS, dynamic, linear, llama3, longrope, pair, yarn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from coreai_recipes.primitives.rotary import Rotary, attention_factor, inverse_frequencies
from coreai_recipes.recipe import schema

HEAD_DIMS = (64, 80, 128, 256)
THETAS = (1e4, 1.5e5, 1e6)
NESTED = "full, half, one of two layer types"
# transformers looks for `truncate` beside the layer types' own parameters, and so never finds it there
UNREAD = (NESTED, "yarn, not truncated")
MATRIX = [(base, scaling) for base in BASES for scaling in SCALINGS if (base, scaling) != UNREAD]
searched = settings(max_examples=60, derandomize=True, deadline=None)


def test_the_matrix_has_every_scaling_of_transformers_and_of_recipes() -> None:
    theirs_named = {SCALINGS[name].words(8)[0]["rope_type"] for name in SCALINGS}
    assert theirs_named == ROPE_INIT_FUNCTIONS.keys() - {"proportional"}  # which is a kind here
    ours_named = {SCALINGS[name].words(8)[1]["kind"] for name in SCALINGS}
    said = {get_args(each.model_fields["kind"].annotation)[0] for each in get_args(get_args(schema.Scaling)[0])}
    assert ours_named == said - {"ntk"}  # HunYuan's own, compared below


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("base", "scaling"), MATRIX)
def test_every_bit_is_that_of_transformers(base: str, scaling: str, dtype: torch.dtype) -> None:
    for head_dim in filter(BASES[base].allows, HEAD_DIMS):
        for theta in THETAS:
            reference, rotary, positions = pair(base, scaling, head_dim, theta)
            x = torch.randn(1, 3, positions.shape[1], head_dim).to(dtype)
            turned = rotary(x, positions)
            assert torch.equal(turned, reference(x, positions)), (head_dim, theta)
            assert turned.dtype == dtype
            assert torch.equal(torch.tensor(rotary.inv_freq), reference.inv_freq), (head_dim, theta)


def test_transformers_does_not_read_truncate_where_layer_types_have_parameters_of_their_own() -> None:
    reference = pair(*UNREAD, 128, 1e4)[0]
    assert torch.equal(reference.inv_freq, torch.tensor(pair(NESTED, "yarn", 128, 1e4)[1].inv_freq))


@pytest.mark.parametrize("factor", [1.0, 8.0])
@pytest.mark.parametrize("share", [0.25, 0.7, 1.0])
def test_proportional_frequencies_are_divided_as_transformers_divides_them(share: float, factor: float) -> None:
    from rotary_families import gemma4

    rope = {"rope_type": "proportional", "partial_rotary_factor": share, "rope_theta": 1e6, "factor": factor}
    reference = gemma4("full_attention", 512, **rope)
    scaling = None if factor == 1.0 else {"kind": "linear", "factor": factor}
    rotary = ours("proportional", 512, theta=1e6, factor=share, scaling=scaling)
    x, positions = torch.randn(1, 2, 4, 512), torch.tensor([[0, 1, 4096, 131071]])
    assert torch.equal(torch.tensor(rotary.inv_freq), reference.inv_freq)
    assert torch.equal(rotary(x, positions), reference(x, positions))


@pytest.mark.parametrize("alpha", [2.0, 1000.0])
def test_hunyuans_alpha_is_ntk(alpha: float) -> None:
    from transformers import HunYuanDenseV1Config
    from transformers.models.hunyuan_v1_dense import modeling_hunyuan_v1_dense as modeling

    parameters = {"rope_type": "dynamic", "alpha": alpha, "factor": 1.0, "rope_theta": 1e4}
    config = HunYuanDenseV1Config(hidden_size=128, num_attention_heads=2, head_dim=80, rope_parameters=parameters)
    reference = modeling.HunYuanDenseV1RotaryEmbedding(config)
    rotary = ours("full", 80, theta=1e4, scaling={"kind": "ntk", "alpha": alpha})
    positions = torch.tensor([[0, 1, 77, 131071]])
    assert torch.equal(torch.tensor(rotary.inv_freq), reference.inv_freq)
    cos, sin = reference(torch.zeros(1), positions)
    assert torch.equal(torch.cat(rotary.angles(positions), -1), torch.cat((cos[..., :40], sin[..., :40]), -1))


# --- by search --------------------------------------------------------------------------------------------------------

even = st.integers(4, 128).map(lambda half: 2 * half)
bases = st.floats(100.0, 1e7)
stretches = st.floats(1.0, 64.0)
origins = st.integers(16, 65536)


def assert_equal(base: str, scaling: str, head_dim: int, theta: float, words: Any) -> None:
    reference, rotary, positions = pair(base, scaling, head_dim, theta, words)
    x = torch.randn(1, 2, positions.shape[1], head_dim)
    assert torch.equal(rotary(x, positions), reference(x, positions))


@searched
@given(base=st.sampled_from(list(BASES)), head_dim=even, theta=bases, factor=stretches, data=st.data())
def test_any_linear_llama3_or_dynamic_scaling_is_transformers(
    base: str, head_dim: int, theta: float, factor: float, data: st.DataObject
) -> None:
    assume(BASES[base].allows(head_dim) and BASES[base].width(head_dim) > 2)
    name, words = data.draw(st.sampled_from([("linear", linear), ("llama3", llama3), ("dynamic", dynamic)]))
    assert_equal(base, name, head_dim, theta, words(0, factor))


@searched
@given(
    base=st.sampled_from(list(BASES)),
    head_dim=even,
    theta=bases,
    factor=stretches,
    original=origins,
    truncate=st.booleans(),
    slow=st.floats(0.1, 4.0),
    wider=st.floats(1.0, 64.0),
    mscales=st.sampled_from([{}, {"mscale": 1.0, "mscale_all_dim": 0.707}, {"attention_factor": 1.25}]),
)
def test_any_yarn_is_transformers(
    base: str,
    head_dim: int,
    theta: float,
    factor: float,
    original: int,
    truncate: bool,
    slow: float,
    wider: float,
    mscales: dict[str, float],
) -> None:
    assume(BASES[base].allows(head_dim) and BASES[base].width(head_dim) >= 2)
    assume(truncate or base != NESTED)
    more = {"truncate": truncate, "beta_slow": slow, "beta_fast": slow + wider, **mscales}
    assert_equal(base, "yarn", head_dim, theta, yarn(0, factor, original, **more))


@searched
@given(base=st.sampled_from(list(BASES)), head_dim=even, theta=bases, factor=stretches, short=st.booleans())
def test_any_longrope_is_transformers(base: str, head_dim: int, theta: float, factor: float, short: bool) -> None:
    width = BASES[base].width(head_dim)
    assume(BASES[base].allows(head_dim) and width >= 2)
    name = "longrope, short" if short else "longrope, long"
    assert_equal(base, name, head_dim, theta, longrope(width // 2, factor))


# --- what a mistake would look like -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "change"),
    [
        ("linear", None),
        ("llama3", None),
        ("yarn", None),
        ("longrope, long", None),
        ("yarn, not truncated", {"truncate": True}),
        ("yarn, mscales", {"mscale": None}),
        ("yarn, slow ramp", {"beta_fast": 32.0}),
        ("yarn, slow ramp", {"beta_slow": 1.0}),
        ("yarn, attention factor", {"attention_factor": None}),
        ("longrope, attention factor", {"attention_factor": None}),
    ],
)
def test_a_part_left_out_is_seen(scaling: str, change: dict[str, Any] | None) -> None:
    reference, rotary, positions = pair("full, half", scaling, 128, 1e6)
    said = rotary.spec.scaling
    assert said is not None
    mutant = None if change is None else said.model_copy(update=change)
    wrong = Rotary(rotary.spec.model_copy(update={"scaling": mutant}), 128, context=SCALINGS[scaling].context)
    x = torch.randn(1, 3, positions.shape[1], 128)
    assert not torch.allclose(wrong(x, positions), reference(x, positions), atol=1e-3)


def test_the_other_factors_of_longrope_are_seen() -> None:
    reference, rotary, positions = pair("full, half", "longrope, long", 128, 1e4)
    x = torch.randn(1, 3, positions.shape[1], 128)
    assert not torch.allclose(Rotary(rotary.spec, 128)(x, positions), reference(x, positions), atol=0.1)


def test_longrope_takes_its_long_factors_when_the_context_exceeds_the_original() -> None:
    spec = pair("full, half", "longrope, long", 64, 1e4)[1].spec
    short, long = (inverse_frequencies(spec, 64, context) for context in (4096, 4097))
    assert torch.equal(inverse_frequencies(spec, 64), short)
    divided = spec.scaling.long_factor  # type: ignore[union-attr]
    plain = inverse_frequencies(spec.model_copy(update={"scaling": None}), 64)
    assert torch.allclose(long, plain / torch.tensor(divided))
    assert not torch.allclose(long, short)


def test_dynamic_scaling_is_none_within_the_trained_context_and_theirs_is_another_beyond() -> None:
    plain, scaled = ours("full", 64, theta=1e4), pair("full, half", "dynamic", 64, 1e4)[1]
    assert scaled.inv_freq == plain.inv_freq
    reference = theirs("llama", 64, rope_type="dynamic", factor=4.0, rope_theta=1e4)
    x, beyond = torch.randn(1, 1, 2, 64), torch.tensor([[500, 4 * 131072]])
    assert not torch.allclose(reference(x, beyond)[..., :1, :], scaled(x, beyond)[..., :1, :], atol=1e-4)


def test_the_attention_factors_are_those_of_the_papers() -> None:
    assert attention_factor(pair("full, half", "yarn", 64, 1e4)[1].spec) == 0.1 * math.log(32) + 1
    assert attention_factor(pair("full, half", "yarn, equal mscales", 64, 1e4)[1].spec) == 1.0
    assert attention_factor(pair("full, half", "longrope, long", 64, 1e4)[1].spec) == math.sqrt(1 + 5 / 12)
    assert attention_factor(schema.NoRotary(kind="none")) == 1.0


def test_cos_and_sin_hold_the_attention_factor_and_a_turn_makes_heads_longer_by_it() -> None:
    rotary = pair("full, half", "yarn", 64, 1e4)[1]
    x = torch.randn(1, 2, 3, 64)
    turned = rotary(x, torch.tensor([[0, 7, 4096]]))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1) * (0.1 * math.log(32) + 1))


@pytest.mark.parametrize(("context", "chosen"), [(32, "short"), (33, "long")])
def test_a_recipe_says_which_factors_of_longrope_were_chosen(context: int, chosen: str) -> None:
    from families import llama

    from coreai_recipes.decoder.model import build_decoder

    words = {**longrope(4, original=32)[1], "kind": "longrope"}
    data = llama(head_dim=8).recipe.model_dump()
    data["model"]["kinds"]["full"]["rotary"]["scaling"] = words
    data["export"]["context"] = context
    recipe = schema.Recipe.model_validate(data)
    assert recipe.rotary_choices == {
        "full": f"longrope: the {chosen} factors, for context {context} and original context 32"
    }
    inv_freq = torch.tensor(build_decoder(recipe).front.rotary("full").inv_freq)
    plain = torch.tensor(ours("full", 8, theta=10000.0).inv_freq)
    assert torch.allclose(inv_freq * torch.tensor(words[f"{chosen}_factor"]), plain)
    assert llama().recipe.rotary_choices == {}
