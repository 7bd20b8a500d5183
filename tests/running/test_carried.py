"""A session whose program carries a tensor, against an engine that folds every real token into one."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from fake_bundle import VOCAB, fake_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreai_recipes.running.carried import MOST_KEPT, Snapshots
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.running.session import Session

CHUNK, CONTEXT, NAME = 4, 64, "recurrent_full"


def folded(token_ids: Sequence[int], state: int = 0) -> int:
    """What tokens make of a state: any other sequence makes another."""
    for token in token_ids:
        state = (31 * state + token + 1) % 8191
    return state


def logits_of(state: int) -> Tensor:
    return torch.rand(VOCAB, generator=torch.Generator().manual_seed(state))


class Folding:
    """An engine with one function for all names, which takes the state as docs/bundle.md says and gives the next."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def function(self, name: str) -> Any:
        return self._call

    def make_state(self) -> dict[str, Tensor]:
        return {}

    def _call(self, inputs: Mapping[str, Tensor], state: Any, watch: Any = None) -> dict[str, Tensor]:
        position, count = int(inputs["position"]), int(inputs.get("count", torch.ones(1)))
        self.calls.append((position, count))
        new = folded(inputs["input_ids"][0, :count].tolist(), int(inputs[NAME]))
        return {"logits": logits_of(new).view(1, 1, VOCAB), f"new_{NAME}": torch.tensor([float(new)])}


def session_on() -> tuple[Session, Folding]:
    engine = Folding()
    program = SavedProgram(engine, None, {NAME: (1,)})
    return Session(program, fake_manifest([(68, None)], CONTEXT, CHUNK, VOCAB)), engine


def is_right(session: Session, token_ids: list[int]) -> bool:
    return torch.equal(session.feed(token_ids), logits_of(folded(token_ids)))


PROMPT = list(range(1, 11))


def test_a_turn_that_goes_on_feeds_only_what_is_new() -> None:
    session, engine = session_on()
    assert is_right(session, PROMPT)
    assert all(is_right(session, [*PROMPT, *range(20, end)]) for end in (21, 22, 23))
    engine.calls.clear()
    assert is_right(session, [*PROMPT, 20, 21, 22, 30, 31])
    assert engine.calls == [(13, 2)]


def test_an_answer_that_is_changed_goes_back_to_the_end_of_its_prompt() -> None:
    session, engine = session_on()
    assert all(is_right(session, [*PROMPT, *range(20, end)]) for end in (20, 21, 22, 23))
    engine.calls.clear()
    assert is_right(session, [*PROMPT, 20, 99 % VOCAB, 40])
    assert engine.calls == [(10, 3)]


def test_the_same_prompt_again_goes_back_to_the_start_of_its_last_call() -> None:
    session, engine = session_on()
    assert all(is_right(session, [*PROMPT, *range(20, end)]) for end in (20, 21))
    engine.calls.clear()
    assert is_right(session, PROMPT)
    assert engine.calls == [(8, 2)]


def test_another_prompt_begins_with_zeros() -> None:
    session, engine = session_on()
    assert is_right(session, PROMPT)
    engine.calls.clear()
    assert is_right(session, [1, 2, 3, 50, 51])
    assert engine.calls == [(0, 4), (4, 1)]


def test_only_the_last_few_are_kept() -> None:
    session, engine = session_on()
    for turn in range(1, 6):
        assert is_right(session, list(range(10 * turn)))
    engine.calls.clear()
    assert is_right(session, [*range(45), 60])
    assert engine.calls[0][0] == 40
    assert is_right(session, [*range(12), 60])
    assert engine.calls[-1] == (12, 1)
    assert (0, 4) in engine.calls
    assert MOST_KEPT == 4


def test_a_call_that_was_interrupted_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = session_on()
    assert is_right(session, PROMPT)

    def interrupted(self: Snapshots, position: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "note", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.feed([*PROMPT, 20, 21])
    assert is_right(session, [*PROMPT, 20, 21])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=CONTEXT), min_size=1, max_size=8))
def test_whatever_is_fed_the_answer_is_that_of_the_whole_sequence(texts: list[list[int]]) -> None:
    session, _ = session_on()
    assert all(is_right(session, text) for text in texts)
