"""Kept prompts: what is restored goes on as if nothing had come between, within the bytes that are allowed."""

from pathlib import Path

import pytest
from torch import Tensor

from coreai_recipes.bundle import Bundle
from coreai_recipes.generate import LanguageModel, open_model
from coreai_recipes.serving.prefixes import SHORTEST, Prefixes


@pytest.fixture
def model(tiny_bundle: Path) -> LanguageModel:
    return open_model(tiny_bundle, Bundle.open(tiny_bundle).manifest, "evaluator")


ONE, OTHER = list(range(5, 5 + 2 * SHORTEST)), list(range(60, 60 + 2 * SHORTEST))


def test_a_kept_prompt_goes_on_where_it_was(model: LanguageModel) -> None:
    session = model.session
    prefixes = Prefixes(session, 1 << 30)
    session.feed(ONE)
    assert prefixes.prepare(OTHER) == 0
    session.feed(OTHER)
    assert len(prefixes) == 1
    assert prefixes.prepare([*ONE, 7]) == len(ONE)
    assert session.token_ids == tuple(ONE)
    assert session.feed([*ONE, 7]).equal(undisturbed(model, ONE, [*ONE, 7]))


def undisturbed(model: LanguageModel, *texts: list[int]) -> Tensor:
    """What follows the last of the texts, fed one after another to a session of their own."""
    session = open_model(model.path, Bundle.open(model.path).manifest, "evaluator").session
    return [session.feed(text) for text in texts][-1]


def test_a_text_that_goes_on_is_not_copied(model: LanguageModel) -> None:
    prefixes = Prefixes(model.session, 1 << 30)
    model.session.feed(ONE)
    assert prefixes.prepare([*ONE, 7, 8]) == len(ONE)
    assert len(prefixes) == 0


def test_the_rows_that_are_used_alone_are_kept(model: LanguageModel) -> None:
    prefixes = Prefixes(model.session, 1 << 30)
    model.session.feed(ONE)
    prefixes.prepare(OTHER)
    whole = sum(state.numel() * state.element_size() for state in model.session.states.values())
    rows = next(iter(model.session.states.values())).shape[2]
    assert prefixes.bytes == whole * len(ONE) // rows


@pytest.mark.parametrize(("share", "kept"), [(0, 0), (1, 1), (2.5, 2)])
def test_the_oldest_are_forgotten_where_the_bytes_do_not_suffice(model: LanguageModel, share: float, kept: int) -> None:
    model.session.feed(ONE)
    one = model.session.keep()
    assert one is not None
    prefixes = Prefixes(model.session, int(one.bytes * share))
    for start in (60, 100, 140, 180):
        text = list(range(start, start + len(ONE)))
        prefixes.prepare(text)
        model.session.feed(text)
    assert len(prefixes) == kept
    assert prefixes.bytes <= one.bytes * share
    assert prefixes.prepare(list(range(100, 100 + len(ONE)))) == (len(ONE) - 1 if kept > 1 else 0)


def test_a_longer_text_stands_for_its_beginning(model: LanguageModel) -> None:
    prefixes = Prefixes(model.session, 1 << 30)
    model.session.feed(ONE)
    prefixes.prepare(OTHER)
    prefixes.prepare([*ONE, 7])
    model.session.feed([*ONE, 7])
    prefixes.prepare(OTHER)
    assert len(prefixes) == 1
    assert prefixes.prepare([*ONE, 8]) == len(ONE)


def test_rings_and_drafts_are_restored_too(gemma4_tiny_bundle: Path) -> None:
    """A ring goes back by so much and no further: what was kept of a longer text does not serve its beginning."""
    model = open_model(gemma4_tiny_bundle, Bundle.open(gemma4_tiny_bundle).manifest, "evaluator")
    prefixes = Prefixes(model.session, 1 << 30)
    long = [5 + n % 90 for n in range(100)]
    wanted = undisturbed(model, long, [*long, 7])
    model.session.feed(long)
    prefixes.prepare(OTHER)
    model.session.feed(OTHER)
    assert prefixes.prepare([*long, 7]) == len(long)
    assert model.session.feed([*long, 7]).equal(wanted)
    assert model.session.count_reusable([*long[:40], 9]) == 0
