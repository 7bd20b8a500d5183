"""Rows since the last commit: a session goes back to any of their positions, and a commit makes room for more."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from fake_bundle import VOCAB, fake_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_carried import CHUNK, CONTEXT, NAME, folded, logits_of
from torch import Tensor

from coreai_recipes.running.buffer import RowBuffer
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.running.session import Session

ROWS = 7


class FoldingOnRows:
    """As `Folding`, the state being that of `base`: the tokens since stand in the rows, position p in row p mod R."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.commits: list[tuple[int, int]] = []

    def function(self, name: str) -> Any:
        return self._commit if name == "commit" else self._call

    def make_state(self) -> dict[str, Tensor]:
        return {}

    def _state(self, inputs: Mapping[str, Tensor]) -> int:
        base, position = int(inputs["base"]), int(inputs["position"])
        assert 0 <= position - base <= ROWS
        held = [int(inputs["rows_full"][0, each % ROWS, 0]) for each in range(base, position)]
        return folded(held, int(inputs[NAME]))

    def _commit(self, inputs: Mapping[str, Tensor], state: Any, watch: Any = None) -> dict[str, Tensor]:
        self.commits.append((int(inputs["base"]), int(inputs["position"])))
        return {f"new_{NAME}": torch.tensor([float(self._state(inputs))])}

    def _call(self, inputs: Mapping[str, Tensor], state: Any, watch: Any = None) -> dict[str, Tensor]:
        position, count = int(inputs["position"]), int(inputs.get("count", torch.ones(1)))
        self.calls.append((position, count))
        assert position + count - int(inputs["base"]) <= ROWS
        new = folded(inputs["input_ids"][0, :count].tolist(), self._state(inputs))
        rows = inputs["input_ids"].float().view(1, -1, 1)
        return {"logits": logits_of(new).view(1, 1, VOCAB), "new_rows_full": rows}


def session_on(spare: int = 0) -> tuple[Session, FoldingOnRows, SavedProgram]:
    engine = FoldingOnRows()
    program = SavedProgram(engine, None, {NAME: (1,)}, buffer=RowBuffer({"rows_full": (1, ROWS, 1)}, spare))
    return Session(program, fake_manifest([(68, None)], CONTEXT, CHUNK, VOCAB)), engine, program


def is_right(session: Session, token_ids: list[int]) -> bool:
    return torch.equal(session.feed(token_ids), logits_of(folded(token_ids)))


PROMPT = list(range(1, 11))


def test_an_answer_that_is_changed_goes_back_no_farther_than_to_the_change() -> None:
    """Without rows it went back to the end of the prompt."""
    session, engine, _ = session_on()
    assert all(is_right(session, [*PROMPT, *range(20, end)]) for end in (20, 21, 22, 23))
    engine.calls.clear()
    assert is_right(session, [*PROMPT, 20, 99 % VOCAB, 40])
    assert engine.calls == [(11, 2)]


def test_a_commit_is_made_where_a_call_finds_no_room() -> None:
    session, engine, _ = session_on()
    assert all(is_right(session, list(range(1, end + 1))) for end in range(1, 20))
    assert engine.commits == [(0, 7), (7, 14)]


def test_a_commit_leaves_as_many_positions_as_a_score_may_go_back() -> None:
    _, engine, program = session_on(spare=3)
    inputs = {"input_ids": torch.tensor([[5]], dtype=torch.int32)}
    for position in range(8):
        program.call("decode", {**inputs, "position": torch.tensor([position], dtype=torch.int32)})
    assert engine.commits == [(0, 4)]
    program.call("decode", {**inputs, "position": torch.tensor([4], dtype=torch.int32)})
    with pytest.raises(ValueError, match=r"^a call at position 3 is before the last commit, at 4$"):
        program.call("decode", {**inputs, "position": torch.tensor([3], dtype=torch.int32)})


def test_more_tokens_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^8 tokens do not go into a buffer of 7 rows$"):
        RowBuffer({"rows_full": (1, ROWS, 1)}).to_commit(0, 8)


def test_what_a_session_shows_of_its_states_is_committed() -> None:
    """Another process goes on from there, without the rows."""
    session, _, _ = session_on()
    assert is_right(session, PROMPT[:5])
    shown = {name: tensor.clone() for name, tensor in session.states.items()}
    other, engine, program = session_on()
    program.carried[NAME].copy_(shown[NAME])
    other.resume(PROMPT[:5], 5)
    assert is_right(other, PROMPT)
    assert engine.calls[0] == (5, 4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=CONTEXT), min_size=1, max_size=8))
def test_whatever_is_fed_the_answer_is_that_of_the_whole_sequence(texts: list[list[int]]) -> None:
    session, _, _ = session_on()
    assert all(is_right(session, text) for text in texts)
