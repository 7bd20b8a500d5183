"""Rounds of a small random Gemma 4 and its draft, token for token those of transformers' assisted generation."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from families import gemma4
from gemma4_drafts import gemma4_draft
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.decoder import draft as draft_module
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.primitives.cache import draft_mask
from coreai_recipes.running import speculation
from coreai_recipes.running.speculation import Round, Speculator, seen_positions
from coreai_recipes.verification.draft_reference import assisted_rounds
from coreai_recipes.verification.stages.draft import OfTorch, windows_of

CONTEXT, SCORE, WINDOW = 64, 5, 7


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> "Models":
    return Models(tmp_path_factory.mktemp("draft"))


class Models:
    """A target and a draft of transformers, and ours.

    Both say for the most part what the last token says to them, and the draft knows the target's table: so that some
    drafted tokens are accepted and some are not.
    """

    def __init__(self, folder: Any) -> None:
        pair = gemma4(context=CONTEXT, functions={"prefill": 16, "score": SCORE})
        self.recipe, self.draft = gemma4_draft(pair)
        self.target = pair.model
        with torch.no_grad():
            for model in (self.target, self.draft):
                for name, parameter in model.named_parameters():
                    if "post" in name and name.endswith("norm.weight"):
                        parameter.mul_(0.7)
            reads_token = self.draft.pre_projection.weight[:, : self.recipe.model.hidden_size]
            table = self.draft.model.embed_tokens.weight
            noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(5))
            table.copy_(self.target.model.embed_tokens.weight @ reads_token.T + 0.2 * noise)
        self.draft.save_pretrained(folder)
        drafter = Draft.build(self.recipe)
        fill_from(drafter, bind_weights(drafter, open_checkpoint(folder)))
        self.ours = OfTorch(pair.decoder(), drafter)

    @cache  # noqa: B019
    def theirs(self, prompt: tuple[int, ...], tokens: int) -> tuple[Round, ...]:
        return tuple(assisted_rounds(self.target, self.draft, prompt, tokens, SCORE - 1))

    def found(self, prompt: tuple[int, ...], tokens: int) -> tuple[Round, ...]:
        return tuple(self.ours.rounds(prompt, tokens))

    def text(self, prompt: tuple[int, ...], tokens: int) -> list[int]:
        """Greedy text of the target alone."""
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": None, "pad_token_id": 0}
        out = self.target.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def prompt_of(length: int, seed: int = 3) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 131, (length,), generator=generator).tolist())


# shorter than the window, as long, and longer; the window moves while each goes on
PROMPTS = (1, 3, WINDOW - 1, WINDOW, WINDOW + 1, 20, 33)


@pytest.mark.parametrize("length", PROMPTS)
def test_rounds_are_those_of_transformers(models: Models, length: int) -> None:
    prompt, tokens = prompt_of(length), 28
    theirs = models.theirs(prompt, tokens)
    assert models.found(prompt, tokens) == theirs
    assert [token for found in theirs for token in found.tokens] == models.text(prompt, tokens)


def test_the_rounds_that_are_compared_accept_some_tokens_and_reject_others(models: Models) -> None:
    rounds = [found for length in PROMPTS for found in models.theirs(prompt_of(length), 28) if found.drafted]
    assert {found.accepted for found in rounds} == set(range(SCORE))
    assert 0.3 < sum(found.accepted for found in rounds) / len(rounds) < 3


@pytest.mark.parametrize("tokens", range(1, 14))
def test_a_number_of_tokens_that_ends_within_a_round_ends_it_there(models: Models, tokens: int) -> None:
    prompt = prompt_of(20)
    found = models.found(prompt, tokens)
    assert found == models.theirs(prompt, tokens)
    assert sum(len(each.tokens) for each in found) == tokens


@pytest.mark.parametrize("left", range(9))
def test_no_call_goes_beyond_the_context(models: Models, left: int) -> None:
    """The last token that can be given stands at context - 1, and what it answers is one more."""
    prompt = prompt_of(CONTEXT - left)
    furthest = 0

    def call(function: str, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        nonlocal furthest
        if function != "draft":
            furthest = max(furthest, int(inputs["position"]) + int(inputs.get("count", torch.ones(1))))
        return models.ours(function, inputs)

    models.ours.reset()
    windows, queries = windows_of(models.recipe, models.ours.draft), models.recipe.export.functions.queries
    speculator = Speculator(call, windows, queries, CONTEXT, models.recipe.model.vocab_size)
    found = tuple(speculator.rounds(prompt, 50, lambda logits: int(logits.argmax())))
    assert furthest <= CONTEXT
    assert sum(len(each.tokens) for each in found) == left + 1
    assert found == models.theirs(prompt, left + 1)


@pytest.mark.parametrize("known", [1, 12, 19])
def test_a_prompt_whose_beginning_is_known_gives_the_same_rounds(models: Models, known: int) -> None:
    prompt = prompt_of(20)
    models.ours.reset()
    windows, queries = windows_of(models.recipe, models.ours.draft), models.recipe.export.functions.queries
    speculator = Speculator(models.ours, windows, queries, CONTEXT, models.recipe.model.vocab_size)
    list(speculator.rounds(prompt[:known], 1, lambda logits: 0))
    found = speculator.rounds(prompt, 20, lambda logits: int(logits.argmax()), skip=known)
    assert tuple(found) == models.theirs(prompt, 20)


@settings(max_examples=8, derandomize=True, deadline=None, database=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 99), tokens=st.integers(1, 24))
def test_any_prompt_has_the_rounds_of_transformers(models: Models, length: int, seed: int, tokens: int) -> None:
    prompt = prompt_of(length, seed)
    assert models.found(prompt, tokens) == models.theirs(prompt, tokens)


# --- what a draft sees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "processed", "length", "fed", "seen"),
    [
        (None, 9, 10, 9, 9),  # behind a prompt: all of it, and not yet the token that was picked
        (None, 14, 11, 5, 11),  # three of four rejected: a row of a rejected token stands where the picked one will
        (None, 14, 15, 5, 14),  # all accepted
        (7, 5, 6, 5, 5),  # the window has not moved
        (7, 9, 8, 5, 8),  # nor has it here, for the last call's tokens are held besides
        (7, 14, 11, 5, 14),  # it has: 11 positions are held, and the text is as long, so the rejected are all seen
        (7, 30, 27, 5, 30),
        (7, 30, 31, 30, 30),  # a prompt taken at once
        (7, 6, 7, 1, 6),  # a decode
    ],
)
def test_what_is_seen_is_what_transformers_cache_holds(
    window: int | None, processed: int, length: int, fed: int, seen: int
) -> None:
    assert seen_positions(window, processed, length, fed) == seen


# --- the tests above, shown to notice ---------------------------------------------------------------------------------


def parts_from_transformers(models: Models) -> bool:
    return any(models.found(prompt_of(length), 28) != models.theirs(prompt_of(length), 28) for length in PROMPTS)


def exclusive(rows: int, window: int | None, seen: Tensor, keys_last: bool) -> Tensor:
    return draft_mask(rows, None if window is None else window - 1, seen, keys_last)


def test_a_window_that_is_not_inclusive_is_seen(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_module, "draft_mask", exclusive)
    assert parts_from_transformers(models)


def test_a_rejected_token_that_is_hidden_is_seen(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        speculation, "seen_positions", lambda _window, processed, length, _fed: min(processed, length - 1)
    )
    assert parts_from_transformers(models)


def test_a_position_that_advances_within_a_round_is_seen(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, step = OfTorch.__call__, 0

    def call(self: OfTorch, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nonlocal step
        step = step + 1 if function == "draft" else 0
        return plain(self, function, {**inputs, "position": inputs["position"] + max(step - 1, 0)})

    monkeypatch.setattr(OfTorch, "__call__", call)
    assert parts_from_transformers(models)


def test_an_embedding_without_the_targets_scale_is_seen(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OfTorch.__call__

    def call(self: OfTorch, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with pytest.MonkeyPatch.context() as patch:
            if function == "draft":
                patch.setattr(self.decoder.embedding, "scale", 1.0)
            return plain(self, function, inputs)

    monkeypatch.setattr(OfTorch, "__call__", call)
    assert parts_from_transformers(models)


def test_a_hidden_state_before_the_targets_last_norm_is_seen(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OfTorch.__call__

    def call(self: OfTorch, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if function == "draft":
            return plain(self, function, inputs)
        seen: list[Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            hidden = Decoder.hidden

            def keep(*arguments: Any) -> Tensor:
                seen.append(hidden(*arguments))
                return seen[-1]

            patch.setattr(Decoder, "hidden", keep)
            found = plain(self, function, inputs)
        rows = seen[0].squeeze(2).transpose(1, 2)
        count = int(inputs.get("count", torch.ones(1)))
        return {**found, "hidden": rows[:, count - 1 : count] if function == "prefill" else rows}

    monkeypatch.setattr(OfTorch, "__call__", call)
    assert parts_from_transformers(models)


def test_another_layers_cache_than_the_last_is_seen(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_module.Draft, "slot", lambda self, owner: 0)
    assert parts_from_transformers(models)
