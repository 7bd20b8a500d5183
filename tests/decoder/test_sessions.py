"""Prefill, padding, decode and rollback, in any order, equal the plain sequence."""

import math

import pytest
import torch
from decoder_sessions import (
    CONTEXT,
    DECODERS,
    FLOOR,
    PLANS,
    PREFILL,
    SCORE,
    Session,
    full,
    in_turn,
    mixed,
    random_ids,
    ring,
    sessions,
    shifting,
    worst_figure,
)
from families import HEAD_DIM, mistral
from hypothesis import given, settings
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


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
