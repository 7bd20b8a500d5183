"""The saved package, run call by call, against transformers on the whole sequence.

Whatever way a sequence is cut into calls, whatever the padding and however often it was rolled back, each call's logits
are those of transformers at that position: 90 dB in float32, with weights that float16 holds exactly.
"""

from typing import Any

import pytest
import torch
from families import FAMILIES
from figures import psnr
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from programs import export
from sessions import CONTEXT, FLOOR, PREFILL, SCORE, Subject, rounded

from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache

pytestmark = pytest.mark.xdist_group(__name__)

# Full attention alone, and sliding and full in one program: the ring holds 28 + 5 - 1 positions, which is a block of 32
# rows; rings of many more rows than a window, and chunks longer than it, are in test_gemma4_package.py.
SUBJECTS: dict[str, dict[str, Any]] = {"llama_biased": {}, "gemma2": {"sliding_window": 28}}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest, made: Any, cache: FragmentCache) -> Subject:
    return subject_of(request.param, made, cache)


def subject_of(family: str, made: Any, cache: FragmentCache) -> Subject:
    pair = rounded(
        FAMILIES[family](context=CONTEXT, functions={"prefill": PREFILL, "score": SCORE}, **SUBJECTS[family])
    )
    weights = {name: parameter.data for name, parameter in pair.decoder().named_parameters()}
    package = made(f"{family}.mlpackage", lambda folder: export(pair.recipe, folder, cache, weights))
    tokens = torch.randint(0, pair.recipe.model.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = pair.model(tokens[None]).logits[0]
    return Subject(Program(package), tokens, theirs)


def test_decoding_alone_is_transformers_up_to_the_end_of_the_context(subject: Subject) -> None:
    session = subject.session()
    for _ in range(CONTEXT):
        session.take("decode")


@pytest.mark.parametrize(
    "lengths",
    [
        [16, 16, 16, 16],
        [1, 15, 1, 16, 2, 14, 15],
        [16, 14, 1, 1, 1, 1, 14, 16],  # decoding across the ring's wrap
        [16, 13, 16, 3, 16],  # a chunk across it
        [7, 7, 7, 7, 7, 7, 7, 7, 7, 1],
        [11, 11, 11, 11, 11, 9],
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
@pytest.mark.parametrize("start", [0, 3, 16, 28, 31, 37])
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
    """The ring has window + N - 1 = 32 rows: 6 positions back, the oldest key of the window was overwritten."""
    subject = subject_of("gemma2", made, cache)
    session = subject.session()
    session.take_all([16, 16, 16])
    session.take("score", SCORE)
    session.position -= SCORE + 1
    ours = session.call("decode", subject.tokens[47:48])
    assert psnr(subject.theirs[47:48], ours) < FLOOR
