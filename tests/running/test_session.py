"""The session against a runtime whose logits are a hash of every token that its caches show."""

import pytest
import torch
from fake_bundle import FakeRuntime, expected_seen, fake_manifest, fake_session, hashed_logits
from hypothesis import given, settings
from hypothesis import strategies as st

from coreai_recipes.running.session import Session

FULL = (68, None)
RING = (8, 8)  # no row to spare: nothing can be rolled back
SPARE = (11, 8)  # score: 4


def feeds_right(session: Session, runtime: FakeRuntime, token_ids: list[int]) -> bool:
    return torch.equal(session.feed(token_ids), hashed_logits(expected_seen(token_ids, runtime.caches)))


@pytest.mark.parametrize(
    ("tokens", "calls"),
    [
        (1, [("decode", 0, 1)]),
        (2, [("prefill", 0, 2)]),
        (4, [("prefill", 0, 4)]),
        (5, [("prefill", 0, 4), ("decode", 4, 1)]),
        (7, [("prefill", 0, 4), ("prefill", 4, 3)]),
        (8, [("prefill", 0, 4), ("prefill", 4, 4)]),
    ],
)
def test_new_tokens_are_fed_in_chunks_and_a_single_one_by_decode(
    tokens: int, calls: list[tuple[str, int, int]]
) -> None:
    session, runtime = fake_session([FULL, RING])
    assert feeds_right(session, runtime, list(range(1, tokens + 1)))
    assert runtime.calls == calls


def test_without_prefill_each_token_is_decoded() -> None:
    session, runtime = fake_session([FULL], chunk=1)
    assert feeds_right(session, runtime, [5, 6, 7])
    assert runtime.calls == [("decode", 0, 1), ("decode", 1, 1), ("decode", 2, 1)]


def test_only_what_follows_the_shared_prefix_is_fed() -> None:
    session, runtime = fake_session([FULL, RING])
    assert feeds_right(session, runtime, [1, 2, 3, 4, 5])
    runtime.calls.clear()
    assert feeds_right(session, runtime, [1, 2, 3, 4, 5, 6, 7])
    assert runtime.calls == [("prefill", 5, 2)]
    assert (runtime.resets, session.token_ids) == (0, (1, 2, 3, 4, 5, 6, 7))


def test_full_layers_roll_back_to_any_position() -> None:
    session, runtime = fake_session([FULL])
    session.feed(list(range(1, 30)))
    runtime.calls.clear()
    assert feeds_right(session, runtime, [1, 2, 9])
    assert (runtime.calls, runtime.resets) == ([("decode", 2, 1)], 0)


def test_the_last_token_is_fed_again_when_nothing_is_new() -> None:
    session, runtime = fake_session([FULL])
    session.feed([1, 2, 3])
    runtime.calls.clear()
    assert feeds_right(session, runtime, [1, 2, 3])
    assert feeds_right(session, runtime, [1, 2])
    assert runtime.calls == [("decode", 2, 1), ("decode", 1, 1)]


@pytest.mark.parametrize(("back", "resets"), [(1, 0), (3, 0), (4, 1), (15, 1)])
def test_a_ring_rolls_back_by_its_spare_rows_and_starts_anew_beyond(back: int, resets: int) -> None:
    session, runtime = fake_session([FULL, SPARE])
    before = list(range(1, 21))
    session.feed(before)
    assert feeds_right(session, runtime, [*before[:-back], 50])
    assert runtime.resets == resets


def test_a_ring_without_spare_rows_starts_anew() -> None:
    session, runtime = fake_session([FULL, RING])
    session.feed(list(range(1, 21)))
    assert feeds_right(session, runtime, [*range(1, 20), 50])
    assert runtime.resets == 1


def test_two_rollbacks_count_from_the_last_row_that_was_written() -> None:
    """The second is by 2 from what is held, but the ring was written 4 beyond it: its rows are another position's."""
    session, runtime = fake_session([SPARE])
    session.feed(list(range(1, 21)))
    assert feeds_right(session, runtime, [*range(1, 18), 50])
    assert runtime.resets == 0
    assert feeds_right(session, runtime, [*range(1, 17), 51])
    assert runtime.resets == 1


def test_the_whole_context_can_be_used_and_nothing_beyond() -> None:
    session, runtime = fake_session([FULL, RING], context=10)
    assert feeds_right(session, runtime, list(range(1, 11)))
    with pytest.raises(ValueError, match="11 tokens were given; a call takes 1 to 10"):
        session.feed(list(range(1, 12)))
    with pytest.raises(ValueError, match="0 tokens were given"):
        session.feed([])
    assert session.token_ids == tuple(range(1, 11))


@pytest.mark.parametrize("caches", [[FULL], [FULL, RING], [SPARE, FULL]])
@pytest.mark.parametrize("interrupted_call", [0, 1, 2])
def test_an_interrupted_call_leaves_a_session_that_goes_on(
    caches: list[tuple[int, int | None]], interrupted_call: int
) -> None:
    session, runtime = fake_session(caches)
    runtime.interrupt_at = interrupted_call
    with pytest.raises(KeyboardInterrupt):
        session.feed(list(range(1, 12)))
    assert session.token_ids == tuple(range(1, 4 * interrupted_call + 1))
    assert feeds_right(session, runtime, list(range(1, 12)))


def test_logits_in_pieces_are_joined_and_their_padding_is_left_out() -> None:
    vocab_size = 32_770  # three pieces of 10,944 columns, 62 of them padding

    class InPieces(FakeRuntime):
        def call(self, function: str, inputs: object, watch: object = None) -> dict[str, torch.Tensor]:
            return {"hidden": torch.zeros(1, 1, 2), "logits": torch.arange(3 * 10_944.0).view(1, 3, 10_944)}

    session = Session(InPieces([FULL], 64, 1), fake_manifest([FULL], 64, 1, vocab_size))
    assert torch.equal(session.feed([1]), torch.arange(float(vocab_size)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_feeds_give_what_fresh_caches_give(data: st.DataObject) -> None:
    caches = data.draw(st.sampled_from([[FULL], [FULL, RING], [SPARE], [FULL, SPARE, (20, 16)]]))
    session, runtime = fake_session(caches, context=40)
    token_ids: list[int] = []
    for _ in range(data.draw(st.integers(1, 8))):
        kept = data.draw(st.integers(max(0, len(token_ids) - 6), len(token_ids)))
        new = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=18))
        token_ids = (token_ids[:kept] + new)[:40]
        if data.draw(st.integers(0, 3)) == 0:
            runtime.interrupt_at = len(runtime.calls) + data.draw(st.integers(0, 3))
        try:
            logits = session.feed(token_ids)
        except KeyboardInterrupt:
            continue
        assert torch.equal(logits, hashed_logits(expected_seen(token_ids, caches)))
