"""The saved package, run call by call, against transformers on the whole sequence.

Whatever way a sequence is cut into calls, whatever the padding and however often it was rolled back, each call's logits
are those of transformers at that position: 90 dB in float32, with weights that float16 holds exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from families import FAMILIES, Pair
from figures import psnr
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from programs import export, starts_and_counts
from torch import Tensor

from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache

CONTEXT, PREFILL, SCORE, WINDOW = 64, 16, 5, 7
FLOOR = 90.0
# Full attention alone, and sliding and full in one program: the ring holds 7 + 5 - 1 positions, a prefill 16.
SUBJECTS = ("llama_biased", "gemma2")


@dataclass
class Subject:
    """A package, the tokens that it is given and transformers' logits at each of their positions, (64, V)."""

    program: Program
    tokens: Tensor
    theirs: Tensor

    def session(self) -> "Session":
        return Session(self)


class Session:
    """One sequence through the package; every call's logits are held against transformers'."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.state = subject.program.make_state()
        self.position = 0

    def call(self, function: str, tokens: Tensor, padding: int = 0) -> Tensor:
        """The logits of `tokens` at the session's position, which then stands behind them."""
        queries = {"decode": 1, "prefill": PREFILL, "score": SCORE}[function]
        ids = torch.full((1, queries), padding, dtype=torch.int32)
        ids[0, : len(tokens)] = tokens
        inputs = {"input_ids": ids, "position": torch.tensor([self.position], dtype=torch.int32)}
        if function != "decode":
            inputs["count"] = torch.tensor([len(tokens)], dtype=torch.int32)
        logits = self.subject.program.function(function)(inputs, self.state)["logits"][0]
        self.position += len(tokens)
        return logits[: len(tokens)] if function == "score" else logits

    def take(self, function: str, count: int = 1, padding: int = 0) -> Tensor:
        """The next `count` tokens of the sequence; the logits are checked."""
        end = self.position + count
        ours = self.call(function, self.subject.tokens[self.position : end], padding)
        theirs = self.subject.theirs[end - len(ours) : end]
        found = psnr(theirs, ours)
        assert found >= FLOOR, f"{function} of {count} up to position {end}: {found:.1f} dB"
        return ours

    def take_all(self, lengths: Sequence[int], padding: int = 0) -> None:
        """Consecutive chunks: one token is decoded, several are a prefill."""
        for _, count in starts_and_counts(list(lengths)):
            self.take("decode" if count == 1 else "prefill", count, padding)

    def draft(self, right: int) -> None:
        """Score SCORE tokens (or what the context still holds) of which only `right` are the sequence's own."""
        start, count = self.position, min(SCORE, CONTEXT - self.position)
        right = min(right, count)
        tokens = self.subject.tokens[start : start + count].clone()
        tokens[right:] = (tokens[right:] + 1) % self.subject.theirs.shape[1]
        ours = self.call("score", tokens, padding=3)[:right]
        assert right == 0 or psnr(self.subject.theirs[start : start + right], ours) >= FLOOR
        self.position = start + right


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, made: Any, cache: FragmentCache) -> Subject:
    return subject_of(request.param, made, cache)


def subject_of(family: str, made: Any, cache: FragmentCache) -> Subject:
    pair = rounded(FAMILIES[family](context=CONTEXT, functions={"prefill": PREFILL, "score": SCORE}))
    weights = {name: parameter.data for name, parameter in pair.decoder().named_parameters()}
    package = made(f"{family}.mlpackage", lambda folder: export(pair.recipe, folder, cache, weights))
    tokens = torch.randint(0, pair.recipe.model.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = pair.model(tokens[None]).logits[0]
    return Subject(Program(package), tokens, theirs)


def rounded(pair: Pair) -> Pair:
    """The pair with weights that float16 holds exactly; of a `1+w` norm it is the sum that is stored."""
    one = 1.0 if pair.recipe.model.norm.weight == "1+w" else 0.0
    with torch.no_grad():
        for name, parameter in pair.model.named_parameters():
            offset = one if "norm" in name else 0.0
            parameter.copy_((parameter + offset).half().float() - offset)
    return pair


def test_decoding_alone_is_transformers_up_to_the_end_of_the_context(subject: Subject) -> None:
    session = subject.session()
    for _ in range(CONTEXT):
        session.take("decode")


@pytest.mark.parametrize(
    "lengths",
    [
        [16, 16, 16, 16],  # each longer than the window
        [1, 15, 1, 16, 2, 14, 15],
        [6, 1, 1, 16, 3, 16, 5, 16],  # decoding across the ring's wrap, then chunks across it
        [7, 7, 7, 7, 7, 7, 7, 7, 7, 1],  # a window at a time
        [11, 11, 11, 11, 11, 9],  # the ring's rows at a time
        [12, 10, 12, 10, 12, 8],
        [2] * 32,
    ],
    ids=str,
)
def test_prefill_in_chunks_then_decode_is_transformers(subject: Subject, lengths: list[int]) -> None:
    subject.session().take_all(lengths)


@pytest.mark.parametrize("before", [0, 5, 20])
@pytest.mark.parametrize("count", range(1, PREFILL + 1))
def test_padding_changes_nothing_that_a_later_call_returns(subject: Subject, count: int, before: int) -> None:
    answers = []
    for padding in (0, 17, 130):
        session = subject.session()
        session.take_all([16] * (before // 16) + [before % 16] * (before % 16 > 0))
        answers.append([session.take("prefill", count, padding), session.take("decode"), session.take("prefill", 9, 2)])
    for other in answers[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("count", range(1, SCORE + 1))
def test_padding_of_a_score_changes_nothing(subject: Subject, count: int) -> None:
    answers = []
    for padding in (0, 99):
        session = subject.session()
        session.take("prefill", 16)
        answers.append([session.take("score", count, padding), session.take("decode"), session.take("score", SCORE)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*answers, strict=True))


@pytest.mark.parametrize("left", range(1, PREFILL))
def test_a_prefill_may_start_so_late_that_its_padding_exceeds_the_context(subject: Subject, left: int) -> None:
    session = subject.session()
    session.take_all([16, 16, 16])
    session.take_all([PREFILL - left])
    session.take("prefill", left, padding=left)
    assert session.position == CONTEXT


@pytest.mark.parametrize("left", range(1, SCORE))
def test_a_score_may_start_so_late_that_its_padding_exceeds_the_context(subject: Subject, left: int) -> None:
    session = subject.session()
    session.take_all([16, 16, 16, PREFILL - left])
    session.take("score", left)


@pytest.mark.parametrize("right", range(1, SCORE + 1))
@pytest.mark.parametrize("start", [0, 3, 6, 9, 16, 37])
def test_a_rejected_draft_is_rolled_back_exactly(subject: Subject, start: int, right: int) -> None:
    session = subject.session()
    session.take_all([16] * (start // 16) + [start % 16] * (start % 16 > 0))
    session.draft(right)
    session.take("decode")
    session.draft(right)
    session.take("prefill", 12)
    session.take("decode")


def test_a_rollback_leaves_the_logits_as_if_the_draft_had_never_been(subject: Subject) -> None:
    """Bit for bit: of the full cache and of the ring, what the draft wrote is never looked at."""
    with_draft, without = subject.session(), subject.session()
    for session in (with_draft, without):
        session.take("prefill", 13)
    with_draft.draft(1)
    without.take("score", 1)
    for _ in range(3):
        assert torch.equal(with_draft.take("score", SCORE), without.take("score", SCORE))


def test_a_second_sequence_starts_from_nothing_but_zeros(subject: Subject) -> None:
    first, second = subject.session(), subject.session()
    first.take_all([16, 16])
    second.take_all([16, 16])
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)


@seed(0)
@settings(max_examples=12, deadline=None, database=None)
@given(
    plan=st.lists(
        st.one_of(
            st.just(("decode", 1)),
            st.tuples(st.just("prefill"), st.integers(1, PREFILL)),
            st.tuples(st.just("score"), st.integers(1, SCORE)),
            st.tuples(st.just("draft"), st.integers(1, SCORE)),
        ),
        min_size=4,
        max_size=14,
    ),
    padding=st.integers(0, 130),
)
def test_any_plan_of_calls_is_transformers(subject: Subject, plan: list[tuple[str, int]], padding: int) -> None:
    session = subject.session()
    for function, count in plan:
        left = CONTEXT - session.position
        if left == 0:
            break
        if function == "draft":
            session.draft(count)
        else:
            session.take(function, min(count, left), padding)


def test_a_rollback_further_than_the_ring_holds_would_be_noticed(made: Any, cache: FragmentCache) -> None:
    """The ring has window + N - 1 = 11 rows: 6 positions back, the oldest key of the window was overwritten."""
    subject = subject_of("gemma2", made, cache)
    session = subject.session()
    session.take_all([16, 16])
    session.take("score", SCORE)
    session.position -= SCORE + 1
    ours = session.call("decode", subject.tokens[31:32])
    assert psnr(subject.theirs[31:32], ours) < FLOOR
