"""Whole decoders against transformers, and every way of calling one against the plain sequence."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, HEAD_DIM, Pair, llama, mistral, qwen3, small_model
from figures import psnr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coreai_recipes.decoder.front import front as front_module
from coreai_recipes.decoder.model import Decoder, build_decoder, empty, fill
from coreai_recipes.decoder.states import state_specs, states_of
from coreai_recipes.primitives import cache as cache_module
from coreai_recipes.primitives.attention import FullAttention
from coreai_recipes.primitives.cache import KeptRows, Placement
from coreai_recipes.primitives.layer import PLAIN
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.weights.folding import stored_as

CONTEXT, PREFILL, SCORE, WINDOW = 64, 16, 5, 7
FLOOR = 100


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


def random_ids(length: int, seed: int = 0, vocab_size: int = 131) -> Tensor:
    return torch.randint(0, vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))


# --- against transformers -------------------------------------------------------------------------------------------


def layer_outputs(layers: nn.ModuleList, run: Callable[[], Any]) -> list[Tensor]:
    """What each layer gives while `run` runs."""
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _m, _i, y: outputs.append(y)) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_and_the_logits_equal_transformers(family: str) -> None:
    pair, ids = FAMILIES[family](), random_ids(50)
    decoder = pair.decoder()
    theirs = layer_outputs(pair.model.model.layers, lambda: pair.model(ids))
    ours = layer_outputs(decoder.layers, lambda: decoder(ids))
    assert len(theirs) == len(ours) == len(pair.recipe.model.layer_kinds)
    for reference, x in zip(theirs, ours, strict=True):
        assert psnr(reference, x.squeeze(2).transpose(1, 2)) >= FLOOR
    assert psnr(pair.model(ids).logits, decoder(ids)) >= FLOOR


# one thing of the whole model that a recipe can say wrongly; what belongs to attention is in test_attention.py
MUTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "an embedding without its scale": ("gemma2", {"embedding": {"scale": 1.0}}),
    "norms that multiply by w": ("gemma2", {"norm": {"kind": "rms", "eps": 1e-5, "weight": "w"}}),
    "norms only before": ("gemma2", {"placement": "pre"}),
    "logits without their softcap": ("gemma2", {"head": {"tied": True, "softcap": None}}),
    "a head that is the table": ("llama", {"head": {"tied": True}}),
    "an epsilon that is 1000 times larger": ("llama", {"norm": {"kind": "rms", "eps": 1e-2}}),
    "layer norms": ("llama", {"norm": {"kind": "layer", "eps": 1e-5, "bias": False}}),
    "kinds in another order": ("gemma3", {"layers": ["full", "sliding", "sliding"]}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_recipe_that_says_something_else_is_seen(mutant: str) -> None:
    family, changes = MUTANTS[mutant]
    pair, ids = FAMILIES[family](), random_ids(50)
    data = pair.recipe.model_dump()
    data["model"].update(changes)
    assert psnr(pair.model(ids).logits, pair.decoder(Recipe.model_validate(data))(ids)) < 60


def stitched() -> tuple[Decoder, Callable[[Tensor], Tensor]]:
    """A decoder of three kinds that differ in everything a kind may, and transformers' layers in the same order.

    No family of transformers has such kinds; one-layer models of three families, called one after the other, do.
    """
    parts = {
        "wide": llama(num_hidden_layers=1, theta=1e6, num_attention_heads=3, num_key_value_heads=1, head_dim=32),
        "near": mistral(num_hidden_layers=1, sliding_window=4, num_attention_heads=4, num_key_value_heads=4),
        "far": qwen3(num_hidden_layers=1, head_dim=24, use_sliding_window=True, sliding_window=11, max_window_layers=0),
    }
    order = ["near", "wide", "near", "far", "wide"]
    kinds = {name: next(iter(part.recipe.model.model_dump()["kinds"].values())) for name, part in parts.items()}
    kinds["far"]["attention"].update(kind="sliding", window=11)
    data = parts["wide"].recipe.model_dump()
    data["model"].update(kinds=kinds, layers=order)
    recipe = Recipe.model_validate(data)
    # every layer has weights of its own, so that no two can be mixed up unseen
    models = [
        small_model(type(parts[name].model), parts[name].model.config, seed=9 + i) for i, name in enumerate(order)
    ]
    for model in models:
        model.model.norm = nn.Identity()
    ends = parts["wide"]

    def read(name: str) -> Tensor:
        if not name.startswith("layers."):
            return ends.read(name)
        _, index, rest = name.split(".", 2)
        return Pair(recipe, models[int(index)]).read(f"layers.0.{rest}")

    def reference(ids: Tensor) -> Tensor:
        x = ends.model.model.embed_tokens(ids)
        for model in models:
            x = model.model(inputs_embeds=x).last_hidden_state
        return ends.model.lm_head(ends.model.model.norm(x))

    decoder = build_decoder(recipe)
    fill(decoder, read)
    return decoder, reference


def test_kinds_of_different_windows_and_head_dims_live_in_one_model() -> None:
    decoder, reference = stitched()
    ids = random_ids(50)
    assert psnr(reference(ids), decoder(ids)) >= FLOOR
    # wide and far have one rotary, but not one head_dim: angles of their own
    assert {name: decoder.front.call(1).angle_group(name) for name in decoder.front.kinds} == {
        n: n for n in ("near", "wide", "far")
    }
    assert decoder.slots == [0, 0, 2, 0, 2]


def test_kinds_that_turn_or_see_alike_share_their_angles_and_masks() -> None:
    """Gemma 2's kinds turn alike, Gemma 3's do not."""
    gemma2, gemma3 = (build_decoder(FAMILIES[name]().recipe).front for name in ("gemma2", "gemma3"))
    assert [gemma2.call(1).angle_group(name) for name in ("sliding", "full")] == ["sliding", "sliding"]
    assert [gemma3.call(1).angle_group(name) for name in ("sliding", "full")] == ["sliding", "full"]
    assert [gemma2.call(1).mask_group(name) for name in ("sliding", "full")] == ["sliding", "full"]


# --- prefill then decode equals decode alone ------------------------------------------------------------------------


@dataclass
class Session:
    """A decoder with its states, held against the plain sequence of the tokens that survive."""

    decoder: Decoder
    states: dict[str, Tensor] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    unchecked: list[tuple[int, Tensor]] = field(default_factory=list)
    figures: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states = self.decoder.make_states()

    def call(self, position: int, tokens: list[int], queries: int, padding: int = 0) -> Tensor:
        """Take `tokens` from `position` on, in a function of `queries` tokens: their logits."""
        count = len(tokens)
        assert position <= len(self.ids)
        assert position + count <= self.decoder.recipe.export.context
        if position < len(self.ids):
            self.check()
        given = torch.tensor([tokens + [padding] * (queries - count)], dtype=torch.int32)
        logits = self.decoder(given, position, count, self.states)[:, :count]
        self.ids = self.ids[:position] + tokens
        self.unchecked.append((position, logits))
        return logits

    def check(self) -> None:
        """Take the figure of every call since the last rollback: up to there one plain sequence holds them all."""
        plain = self.decoder(torch.tensor([self.ids]))
        for position, logits in self.unchecked:
            self.figures.append(psnr(plain[:, position : position + logits.shape[1]], logits))
        self.unchecked.clear()


def worst_figure(decoder: Decoder, calls: list[tuple[int, ...]], seed: int = 1) -> float:
    """The lowest figure of `calls` (position, count, queries[, padding id]), each with new random tokens."""
    session, generator = Session(decoder), torch.Generator().manual_seed(seed)
    for position, count, queries, *padding in calls:
        tokens = torch.randint(0, 131, (count,), generator=generator).tolist()
        session.call(position, tokens, queries, *padding)
    session.check()
    return min(session.figures)


def in_turn(*counts: int, queries: int = PREFILL, then_decode_to: int = CONTEXT) -> list[tuple[int, int, int]]:
    """Calls of `queries` tokens with so many real ones each, then single tokens up to a position."""
    calls, position = [], 0
    for count in counts:
        calls.append((position, count, queries))
        position += count
    return calls + [(at, 1, 1) for at in range(position, then_decode_to)]


@cache
def full() -> Decoder:
    return FAMILIES["llama"]().decoder()


@cache
def shifting() -> Decoder:
    """Without `score`: a ring of exactly the window."""
    return mistral(sliding_window=32, functions={"prefill": PREFILL}).decoder()


@cache
def ring() -> Decoder:
    """The window and what `score` may roll back are just a block of rows."""
    return mistral(sliding_window=28).decoder()


@cache
def mixed() -> Decoder:
    """Full and sliding layers, of different kinds, windows and head_dims."""
    return stitched()[0]


@cache
def whole_window() -> Decoder:
    """A window as long as the context."""
    return mistral(sliding_window=CONTEXT).decoder()


@cache
def capped() -> Decoder:
    return FAMILIES["gemma2"]().decoder()


DECODERS = {
    "full": full,
    "shifting": shifting,
    "ring": ring,
    "mixed": mixed,
    "whole_window": whole_window,
    "capped": capped,
}

PLANS = {
    "decode alone": in_turn(),
    "one chunk": in_turn(16),
    "chunks that cross the wrap": in_turn(5, 16, 3, 16, 11),
    "full chunks": in_turn(16, 16, 16, 16),
    "many short chunks": in_turn(*[3] * 20),
    "chunks of one token": in_turn(*[1] * 12),
    "chunks between decode steps": [(0, 1, 1), (1, 13, 16), (14, 1, 1), (15, 1, 1), (16, 16, 16), (32, 1, 1)],
    "score after prefill": [(0, 16, 16), (16, 5, 5), (21, 4, 5), (25, 1, 5), (26, 1, 1), (27, 2, 16), (29, 5, 5)],
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", DECODERS)
def test_prefill_then_decode_equals_the_plain_sequence(name: str, plan: str) -> None:
    assert worst_figure(DECODERS[name](), PLANS[plan]) >= FLOOR


@pytest.mark.parametrize("padding", [0, 7, 130])
@pytest.mark.parametrize("name", ["full", "ring", "mixed"])
def test_every_count_of_real_tokens_leaves_the_states_right(name: str, padding: int) -> None:
    for count in range(1, PREFILL + 1):
        calls = [(0, 9, PREFILL, padding), (9, count, PREFILL, padding), *[(9 + count + i, 1, 1) for i in range(3)]]
        assert worst_figure(DECODERS[name](), calls) >= FLOOR, count


@pytest.mark.parametrize("name", DECODERS)
def test_padding_changes_no_bit_of_what_later_calls_return(name: str) -> None:
    decoder, ids = DECODERS[name](), random_ids(20).tolist()[0]
    answers = []
    for padding in (0, 7, 130):
        session = Session(decoder)
        session.call(0, ids[:11], PREFILL, padding)
        session.call(11, ids[11:13], PREFILL, padding)
        answers.append([decoder(torch.tensor([[ids[at]]]), at, 1, session.states) for at in range(13, 20)])
    for others in answers[1:]:
        assert all(torch.equal(one, other) for one, other in zip(answers[0], others, strict=True))


@pytest.mark.parametrize("worst", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", DECODERS)
def test_padding_that_is_no_number_changes_no_bit_of_what_is_kept_and_returned(
    name: str, worst: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 x inf is NaN, and no mask hides a NaN: neither a ring's product nor a full cache's later scores may meet it."""
    decoder, ids = DECODERS[name](), random_ids(20, vocab_size=130).tolist()[0]
    table = decoder.embedding.weight.clone()
    table[130] = worst
    monkeypatch.setitem(decoder.embedding._parameters, "weight", nn.Parameter(table, requires_grad=False))
    answers: list[list[Tensor]] = []
    for padding in (7, 130):
        session = Session(decoder)
        found = [session.call(0, ids[:11], PREFILL, padding), session.call(11, ids[11:13], SCORE, padding)]
        found += [decoder(torch.tensor([[ids[at]]]), at, 1, session.states) for at in range(13, 20)]
        answers.append([*(logits[..., :130] for logits in found), *session.states.values()])
    assert all(torch.isfinite(tensor).all() for tensor in answers[0])
    assert all(torch.equal(one, other) for one, other in zip(*answers, strict=True))


@pytest.mark.parametrize("kind", ["ring", "shifting"])
def test_padding_leaves_the_ring_untouched(kind: str) -> None:
    decoder, ids = DECODERS[kind](), random_ids(PREFILL)
    states = decoder.make_states()
    decoder(ids, 0, 3, states)
    assert list(states) == ["kv_sliding"]
    for state in states.values():
        assert state[:, :, :3].any(-1).all()
        assert not state[:, :, 3:].any()


@pytest.mark.parametrize("name", DECODERS)
def test_the_last_positions_of_the_context_take_a_padded_call(name: str) -> None:
    """`position + Q` may exceed the context by up to Q - 1."""
    decoder = DECODERS[name]()
    for start in range(CONTEXT - PREFILL + 1, CONTEXT):
        calls = in_turn(PREFILL, PREFILL, PREFILL, start - 48, then_decode_to=0)
        assert worst_figure(decoder, [*calls, (start, CONTEXT - start, PREFILL)]) >= FLOOR, start


@pytest.mark.parametrize("name", DECODERS)
def test_a_session_may_start_again_over_whatever_the_states_hold(name: str) -> None:
    decoder = DECODERS[name]()
    for restart in ((0, 3, PREFILL), (0, 1, 1)):
        calls = [*in_turn(16, 16, 7, then_decode_to=45), restart, *[(restart[1] + i, 1, 1) for i in range(12)]]
        assert worst_figure(decoder, calls) >= FLOOR


def test_ids_and_positions_of_a_chunk_longer_than_the_window_are_all_right() -> None:
    """A window of 3, chunks of 16: most of a chunk's keys are gone before the next call."""
    decoder = mistral(sliding_window=3, functions={"prefill": PREFILL, "score": 2}).decoder()
    assert decoder.make_states()["kv_sliding"].shape == (6, 2, 32, HEAD_DIM)
    for plan in PLANS.values():
        calls = [call for call in plan if call[2] != SCORE]
        if len(calls) == len(plan):
            assert worst_figure(decoder, plan) >= FLOOR


# --- rollback -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", range(1, SCORE))
@pytest.mark.parametrize("name", ["ring", "mixed"])
def test_a_rollback_within_score_is_exact(name: str, back: int) -> None:
    """At every place relative to the wrap, which is at 32, taken up again by each function."""
    for start in range(22, 22 + 12):
        end = start + SCORE
        for count, queries in ((1, 1), (SCORE, SCORE), (3, PREFILL)):
            again = end - back
            calls = [*in_turn(16, min(start - 16, 16), then_decode_to=start), (start, SCORE, SCORE)]
            calls += [(again, count, queries), (again + count, 1, 1)]
            assert worst_figure(DECODERS[name](), calls) >= FLOOR, (start, count)


def test_a_full_cache_rolls_back_by_any_number() -> None:
    calls = [*in_turn(16, 16, then_decode_to=40), (3, 9, PREFILL), (12, 1, 1), (1, 1, 1), (2, 16, 16), (18, 1, 1)]
    assert worst_figure(full(), calls) >= FLOOR


def test_a_ring_forgets_what_lies_further_back_than_it_promises() -> None:
    """Else it would be larger than it must be; a token needs one old key less than the window, so N are right too."""
    written = in_turn(16, 16, then_decode_to=45)
    for back in range(1, SCORE + 1):
        assert worst_figure(ring(), [*written, (45 - back, 1, 1), (46 - back, 1, 1)]) >= FLOOR
    assert worst_figure(ring(), [*written, (45 - SCORE - 1, 1, 1)]) < 60


@st.composite
def sessions(draw: st.DrawFn, rollback: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Any valid calls (position, count, queries, padding): `rollback` from the furthest position written, or any."""
    calls, at, furthest = [], 0, 0
    for _ in range(draw(st.integers(2, 12))):
        lowest = 0 if rollback is None else max(0, furthest - rollback)
        position = draw(st.integers(min(lowest, at), at)) if draw(st.booleans()) else at
        position = min(position, CONTEXT - 1)
        if position < lowest:
            break
        queries = draw(st.sampled_from([1, SCORE, PREFILL]))
        count = draw(st.integers(1, min(queries, CONTEXT - position)))
        calls.append((position, count, queries, draw(st.integers(0, 130))))
        at = position + count
        furthest = max(furthest, at)
    return calls


searched = settings(max_examples=40, derandomize=True, deadline=None)


@searched
@given(sessions(rollback=SCORE - 1))
def test_any_session_of_a_sliding_model_equals_the_plain_sequence(calls: list[tuple[int, int, int, int]]) -> None:
    assert worst_figure(ring(), calls, len(calls)) >= FLOOR


@searched
@given(sessions(rollback=SCORE - 1))
def test_any_session_of_a_mixed_model_equals_the_plain_sequence(calls: list[tuple[int, int, int, int]]) -> None:
    assert worst_figure(mixed(), calls, len(calls)) >= FLOOR


@searched
@given(sessions(rollback=None))
def test_any_session_of_a_full_model_equals_the_plain_sequence(calls: list[tuple[int, int, int, int]]) -> None:
    assert worst_figure(full(), calls, len(calls)) >= FLOOR


@searched
@given(sessions(rollback=0))
def test_any_session_without_score_equals_the_plain_sequence(calls: list[tuple[int, int, int, int]]) -> None:
    assert worst_figure(shifting(), calls, len(calls)) >= FLOOR


# --- the tests above, shown to notice -------------------------------------------------------------------------------

SHORT_PLAN = [(0, 9, PREFILL), (9, 3, PREFILL), (12, 1, 1), (13, 1, 1)]
RING_PLAN = in_turn(16, 16, 3, then_decode_to=37)
ROLLBACK_PLAN = [*in_turn(16, 16, then_decode_to=45), (41, 1, 1), (42, 1, 1)]


def padding_enters(rows: int, position: Tensor, count: Tensor, padding: Tensor) -> Placement:
    return cache_module.ring_placement(rows, position, torch.full_like(count, PREFILL), padding)


def nothing_is_written(rows: int, position: Tensor, count: Tensor, padding: Tensor) -> Placement:
    return Placement(torch.zeros(1, 1, rows, padding.shape[2]), torch.ones(1, 1, rows, 1), padding)


def one_row_off(rows: int, next_position: Tensor) -> Tensor:
    return cache_module.ring_key_positions(rows, next_position + 1)


def no_window(key_positions: Tensor, query_positions: Tensor, window: int | None, keys_last: bool) -> Tensor:
    return cache_module.mask(key_positions, query_positions, None, keys_last)


def empty_rows_are_seen(key_positions: Tensor, query_positions: Tensor, window: int | None, keys_last: bool) -> Tensor:
    return cache_module.mask(key_positions.abs(), query_positions, window, keys_last)


def written_before_it_is_seen(self: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    new = torch.stack((keys, values))
    at, placement = int(self.at), self.placement
    rows = self.key_state[at : at + 2]
    rows.copy_(rows * placement.kept + torch.matmul(placement.put, new))
    seen = torch.cat((rows, new), 2)
    return seen[:1], seen[1:]


@pytest.mark.parametrize(
    ("name", "replacement", "plan"),
    [
        ("ring_placement", padding_enters, RING_PLAN),
        ("ring_placement", nothing_is_written, RING_PLAN),
        ("ring_key_positions", one_row_off, RING_PLAN),
        ("mask", no_window, ROLLBACK_PLAN),
        ("mask", empty_rows_are_seen, SHORT_PLAN),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_in_the_ring_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, replacement: Any, plan: list[tuple[int, int, int]]
) -> None:
    assert worst_figure(ring(), plan) >= FLOOR
    plain = Decoder.forward

    def faulty_when_cached(self: Decoder, ids: Tensor, *args: Any) -> Tensor:
        with monkeypatch.context() as patch:
            if args:  # the plain sequence it is compared with stays right
                patch.setattr(front_module, name, replacement)
            return plain(self, ids, *args)

    monkeypatch.setattr(Decoder, "forward", faulty_when_cached)
    assert worst_figure(ring(), plan) < 60


def test_a_ring_that_is_written_before_it_is_seen_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.RingCache, "update", written_before_it_is_seen)
    assert worst_figure(ring(), in_turn(16, 16, 16, then_decode_to=50)) < 60


def test_a_ring_without_rows_to_roll_back_is_seen() -> None:
    assert worst_figure(shifting(), ROLLBACK_PLAN) < 60


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


# --- parameters -----------------------------------------------------------------------------------------------------


def test_a_decoder_is_built_without_memory_and_every_parameter_is_asked_for_once() -> None:
    pair = FAMILIES["gemma3"]()
    decoder = build_decoder(pair.recipe)
    assert not decoder.training
    names = [name for name, parameter in decoder.named_parameters() if parameter.is_meta]
    assert names == list(decoder.state_dict())
    assert not list(decoder.buffers())
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return pair.read(name).to(torch.float64)

    fill(decoder, read)
    assert asked == names
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in decoder.parameters())
    # as many numbers as transformers has, tied table and all
    assert sum(p.numel() for p in decoder.parameters()) == sum(p.numel() for p in pair.model.parameters())


def test_a_part_is_filled_by_its_names_in_the_whole() -> None:
    pair, whole = FAMILIES["qwen2"](), FAMILIES["qwen2"]().decoder()
    decoder = build_decoder(pair.recipe)
    fill(decoder.layers[1], pair.read, "layers.1.")
    assert {name.rsplit(".", 4)[0] for name, p in decoder.named_parameters() if not p.is_meta} <= {"layers.1", "layers"}
    for name, parameter in decoder.layers[1].named_parameters():
        assert torch.equal(parameter, whole.layers[1].get_parameter(name))
    assert all(p.is_meta for p in decoder.layers[0].parameters())


def test_an_emptied_layer_gives_its_memory_back_and_can_be_filled_again() -> None:
    pair = FAMILIES["llama"]()
    decoder, ids = pair.decoder(), random_ids(9)
    expected = decoder(ids)
    empty(decoder.layers[1])
    assert all(p.is_meta for p in decoder.layers[1].parameters())
    assert not any(p.is_meta for p in decoder.layers[0].parameters())
    fill(decoder.layers[1], pair.read, "layers.1.")
    assert torch.equal(decoder(ids), expected)


def changed(recipe: Recipe, *path: str, **changes: Any) -> Recipe:
    data = recipe.model_dump()
    block = data
    for key in path:
        block = block[key]
    block.update(changes)
    return Recipe.model_validate(data)


def test_one_is_added_to_the_weights_of_1_plus_w_norms_and_to_nothing_else() -> None:
    for family in FAMILIES:
        recipe = FAMILIES[family]().recipe
        expects = family in ("gemma2", "gemma3")  # Gemma 4 multiplies by w
        for name, _ in build_decoder(recipe).named_parameters():
            assert stored_as(recipe, name, PLAIN).offset == (
                1.0 if expects and name.endswith("norm.weight") else 0.0
            ), name


def test_a_kinds_own_norm_and_a_qk_norm_of_its_own_decide_for_themselves() -> None:
    recipe = FAMILIES["gemma3"]().recipe  # sliding, sliding, full
    plain = {"kind": "rms", "eps": 1e-5, "weight": "w"}
    recipe = changed(recipe, "model", "kinds", "full", norm=plain)
    recipe = changed(recipe, "model", "kinds", "sliding", "attention", qk_norm={"over": "head", "norm": plain})
    offsets = {name: stored_as(recipe, name, PLAIN).offset for name, _ in build_decoder(recipe).named_parameters()}
    assert offsets["norm.weight"] == offsets["layers.0.attention_norm.weight"] == 1.0
    assert offsets["layers.0.attention.q_norm.weight"] == offsets["layers.0.attention.k_norm.weight"] == 0.0
    assert {offset for name, offset in offsets.items() if name.startswith("layers.2.")} == {0.0}


def test_a_layer_norms_bias_is_taken_as_it_is() -> None:
    layer_norm = {"kind": "layer", "eps": 1e-5, "weight": "1+w", "bias": True}
    recipe = changed(FAMILIES["llama"]().recipe, "model", norm=layer_norm)
    names = dict(build_decoder(recipe).named_parameters())
    assert "norm.bias" in names
    assert [stored_as(recipe, f"norm.{leaf}", PLAIN).offset for leaf in ("weight", "bias")] == [1.0, 0.0]


def test_an_identical_model_has_an_infinite_figure() -> None:
    """The figure itself: inf for the same tensor, -inf for a tensor that is not finite."""
    x = random_ids(9).float()
    assert psnr(x, x) == math.inf
    assert psnr(x, x / 0) == -math.inf
    assert psnr(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -4.1])) == pytest.approx(
        20 * math.log10(4) - 10 * math.log10(0.005), abs=1e-4
    )
