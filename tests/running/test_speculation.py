"""Rounds of speculation over a scripted target and draft: the text is the target's own, whatever is guessed."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreai_recipes.running.speculation import Round, Speculator, seen_positions

VOCAB, CONTEXT, WINDOW = 29, 40, 6
QUERIES = {"prefill": 8, "decode": 1, "score": 5, "draft": 1}


def following(text: Sequence[int]) -> int:
    """The target's next token, which every earlier one changes."""
    return hash(tuple(text)) % VOCAB


class Scripted:
    """A target whose hidden state is its position, and a draft that errs at the positions in `errs`, and gives logits
    of one token a call or the ids of `steps`."""

    def __init__(self, errs: frozenset[int] = frozenset(), steps: int = 1) -> None:
        self.errs, self.steps = errs, steps
        self.text: list[int] = [0] * (CONTEXT + QUERIES["prefill"])
        self.guessed: list[int] = []
        self.calls: list[tuple[str, int, int]] = []
        self.drafting_calls = 0
        self.seen: list[dict[str, int]] = []

    def __call__(self, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        position, ids = int(inputs["position"]), inputs["input_ids"][0].tolist()
        if function == "draft":
            self.drafting_calls += 1
            return self._draft(position, ids[0], inputs) if self.steps == 1 else self._draft_ids(position, inputs)
        count = int(inputs["count"]) if "count" in inputs else 1
        assert len(ids) == QUERIES[function]
        assert position + count <= CONTEXT
        self.calls.append((function, position, count))
        self.text[position : position + count] = ids[:count]
        rows = range(position, position + len(ids)) if function == "score" else [position + count - 1]
        logits = torch.zeros(1, len(rows), VOCAB)
        for row, at in enumerate(rows):
            logits[0, row, following(self.text[: at + 1])] = 1
        return {"logits": logits, "hidden": torch.tensor([[[float(at)] for at in rows]])}

    def _draft_ids(self, position: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids, hidden = [int(inputs["input_ids"])], inputs["last_hidden"]
        for _ in range(self.steps):
            found = self._draft(position, ids[-1], {**inputs, "last_hidden": hidden})
            ids.append(int(found["logits"].argmax()))
            hidden = found["hidden"]
        return {
            "ids": torch.tensor([ids[1:]], dtype=torch.int32),
            "values": torch.zeros(1, self.steps),
            "hidden": hidden,
        }

    def _draft(self, position: int, token: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hidden = int(inputs["last_hidden"])
        if hidden == position - 1:  # the target's own: a round begins
            self.guessed = self.text[:position]
            self.seen.append({name: int(value) for name, value in inputs.items() if name.startswith("seen_")})
        self.guessed.append(token)
        guess = following(self.guessed)
        if len(self.guessed) in self.errs:
            guess = (guess + 1) % VOCAB
        logits = torch.zeros(1, 1, VOCAB)
        logits[0, 0, guess] = 1
        return {"logits": logits, "hidden": torch.tensor([[[1000.0]]])}


def rounds(model: Scripted, prompt: Sequence[int], max_tokens: int, skip: int = 0) -> list[Round]:
    speculator = Speculator(model, {"sliding": WINDOW, "full": None}, QUERIES, CONTEXT, VOCAB)
    return list(speculator.rounds(prompt, max_tokens, lambda logits: int(logits.argmax()), skip))


def one_by_one(prompt: Sequence[int], tokens: int) -> list[int]:
    text = list(prompt)
    for _ in range(tokens):
        text.append(following(text))
    return text[len(prompt) :]


@pytest.mark.parametrize(("steps", "calls"), [(2, 2), (3, 2), (4, 1)])
def test_several_drafts_a_call_give_the_same_rounds_with_fewer_calls(steps: int, calls: int) -> None:
    """What a call drafts beyond a round is left out."""
    for errs in (frozenset[int](), frozenset({9, 14, 22})):
        single, several = Scripted(errs), Scripted(errs, steps)
        expected = rounds(single, [1, 2, 3], 23)
        assert rounds(several, [1, 2, 3], 23) == expected
        drafted = [-(-len(each.drafted) // steps) for each in expected]
        assert several.drafting_calls == sum(drafted)
        assert max(drafted) == calls


@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT),
    max_tokens=st.integers(1, 50),
    errs=st.frozensets(st.integers(1, CONTEXT + 1)),
)
@settings(max_examples=150, deadline=None)
def test_the_text_is_the_targets_own_whatever_the_draft_guesses(
    prompt: list[int], max_tokens: int, errs: frozenset[int]
) -> None:
    found = rounds(Scripted(errs), prompt, max_tokens)
    tokens = [token for r in found for token in r.tokens]
    assert tokens == one_by_one(prompt, len(tokens))
    assert len(tokens) == min(max_tokens, CONTEXT + 1 - len(prompt))
    for r in found:
        assert len(r.tokens) == r.accepted + 1
        assert r.tokens[: r.accepted] == r.drafted[: r.accepted]
        assert len(r.drafted) < QUERIES["score"]


def test_a_draft_that_is_always_right_gives_five_tokens_a_call() -> None:
    model = Scripted()
    found = rounds(model, [3, 1, 4], 11)
    assert [r.accepted for r in found] == [0, 4, 4]
    assert [call[0] for call in model.calls] == ["prefill", "score", "score"]


def test_a_draft_that_is_always_wrong_costs_the_target_a_call_a_token() -> None:
    model = Scripted(frozenset(range(100)))
    found = rounds(model, [3, 1, 4], 4)
    assert [r.accepted for r in found] == [0, 0, 0, 0]
    # the last call has room for no guess, and is a decode
    assert [call[0] for call in model.calls] == ["prefill", "score", "score", "decode"]


def test_what_the_states_hold_already_is_not_fed_again() -> None:
    model = Scripted()
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    model.text[: len(prompt)] = prompt
    rounds(model, prompt, 1, skip=7)
    assert model.calls == [("prefill", 7, 3)]


def test_a_rejected_token_at_the_texts_end_is_seen_as_transformers_shows_it() -> None:
    model = Scripted(frozenset({5}))  # of the first round's guesses the second is wrong
    rounds(model, [3, 1, 4], 12)
    # first the prompt alone; then 3 + 1 + 1 tokens and the picked one, of 8 that were processed
    assert model.seen[:2] == [{"seen_sliding": 3, "seen_full": 3}, {"seen_sliding": 6, "seen_full": 6}]


@pytest.mark.parametrize(
    ("window", "processed", "length", "fed", "seen"),
    [
        (None, 10, 11, 10, 10),  # after a prompt: all that was processed
        (None, 15, 13, 5, 13),  # two rejected: one of them is seen, at the text's end
        (None, 15, 16, 5, 15),  # all accepted
        (6, 10, 11, 10, 10),  # a prompt is shown whole, the mask takes the last of it
        (6, 8, 7, 5, 7),  # the window has not moved: cut at the text's length
        (6, 30, 27, 5, 30),  # it has: what transformers' cache holds is shorter than the text, and is not cut
    ],
)
def test_how_far_a_draft_sees(window: int | None, processed: int, length: int, fed: int, seen: int) -> None:
    assert seen_positions(window, processed, length, fed) == seen
