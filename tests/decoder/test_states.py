"""What the states of a decoder are: their rows, and where each layer's keys and values lie."""

from functools import cache

import pytest
import torch
from decoder_sessions import DECODERS, PLANS, PREFILL, Session, mixed, random_ids
from families import HEAD_DIM, llama, mistral

from coreai_recipes.decoder.model import Decoder, build_decoder, fill
from coreai_recipes.decoder.states import state_specs, states_of
from coreai_recipes.primitives.attention import FullAttention
from coreai_recipes.primitives.cache import KeptRows
from coreai_recipes.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


# --- states ---------------------------------------------------------------------------------------------------------


def test_states_have_the_rows_that_their_calls_need() -> None:
    """Full: context plus a last call's padding; sliding: the window, and what score may roll back; in blocks of 32."""
    specs = state_specs(mixed().recipe)
    assert {name: (spec.shape, spec.window) for name, spec in specs.items()} == {  # in the order of first use
        "near": ((4, 4, 32, HEAD_DIM), 4),
        "wide": ((4, 1, 96, 32), None),  # 64 + 16 - 1 = 79, in blocks of 32
        "far": ((2, 2, 32, 24), 11),
    }
    assert list(specs) == ["near", "wide", "far"]
    states = mixed().make_states()
    assert list(states) == ["kv_near", "kv_wide", "kv_far"]
    assert all(state.shape == specs[name[3:]].shape and not state.any() for name, state in states.items())
    assert mixed().make_states(torch.float16)["kv_near"].dtype == torch.float16


def test_a_kind_keeps_what_its_primitive_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which rows are kept was decided by the class of the schema, wherever somebody asked."""
    recipe = llama().recipe
    owner = recipe.model.layer_kinds[0]
    assert state_specs(recipe)[owner].window is None
    monkeypatch.setattr(FullAttention, "states", classmethod(lambda cls, kind: (KeptRows(3, 8, window=5),)))
    (spec,) = state_specs(recipe).values()
    assert (spec.num_kv_heads, spec.head_dim, spec.rows, spec.window) == (3, 8, 32, 5)
    monkeypatch.setattr(FullAttention, "states", classmethod(lambda cls, kind: ()))
    assert state_specs(recipe) == {}


@pytest.mark.parametrize(("window", "score", "rows"), [(31, 2, 32), (32, 2, 64), (28, 5, 32), (1, 33, 64)])
def test_a_ring_has_whole_blocks_of_rows(window: int, score: int, rows: int) -> None:
    recipe = mistral(sliding_window=window, functions={"prefill": PREFILL, "score": score}).recipe
    assert state_specs(recipe)["sliding"].rows == rows


def test_kinds_of_one_geometry_lie_in_one_state_and_each_layer_has_its_keys_before_its_values() -> None:
    data = mixed().recipe.model_dump()
    far = data["model"]["kinds"]["far"]["attention"]
    far |= {"num_heads": 4, "num_kv_heads": 4, "head_dim": HEAD_DIM}
    recipe = Recipe.model_validate(data)
    states = states_of(state_specs(recipe))
    assert {name: (state.role, state.shape, [spec.kind for spec in state.kinds]) for name, state in states.items()} == {
        "kv_near": ("kv", (6, 4, 32, HEAD_DIM), ["near", "far"]),
        "kv_wide": ("kv", (4, 1, 96, 32), ["wide"]),
    }
    near, far = states["kv_near"].kinds
    assert [near.at(0), near.at(1), far.at(0)] == [0, 2, 4]
    decoder = build_decoder(recipe)
    held = {name: torch.randn(state.shape) for name, state in states.items()}
    assert torch.equal(far.of_layer(held, 0)[1], held["kv_near"][5])
    assert [decoder.slots[i] for i, kind in enumerate(recipe.model.layer_kinds) if kind == "far"] == [4]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["ring", "mixed"])
def test_packed_states_hold_and_give_the_bits_of_states_per_kind(name: str, plan: str) -> None:
    packed = DECODERS[name]()
    apart = per_kind(name)
    assert list(apart.make_states()) == [f"{half}_{kind}" for kind in apart.front.states for half in "kv"]
    sessions = [Session(packed), Session(apart)]
    for position, count, queries in PLANS[plan]:
        tokens = random_ids(count, position).tolist()[0]
        one, other = (session.call(position, tokens, queries) for session in sessions)
        assert torch.equal(one, other)
    for kind, spec in packed.front.states.items():
        for layer in range(spec.layers):
            ours = spec.of_layer(sessions[0].states, layer)
            theirs = apart.front.states[kind].of_layer(sessions[1].states, layer)
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@cache
def per_kind(name: str) -> Decoder:
    """The same decoder with two states for each kind."""
    decoder = DECODERS[name]()
    data = decoder.recipe.model_dump()
    data["export"]["states"] = "per_kind"
    apart = build_decoder(Recipe.model_validate(data))
    fill(apart, decoder.get_parameter)
    return apart


@pytest.mark.parametrize(
    ("context", "functions", "rows"),
    [
        (64, {"prefill": 16}, 96),
        (64, {"prefill": 2}, 96),
        (49, {"prefill": 16}, 64),
        (50, {"prefill": 16}, 96),
        (50, {"prefill": 2, "score": 40}, 96),
        (64, {"prefill": 64}, 128),
    ],
)
def test_a_full_cache_has_room_for_the_padding_of_the_last_call(
    context: int, functions: dict[str, int], rows: int
) -> None:
    assert state_specs(llama(context=context, functions=functions).recipe)["full"].rows == rows
