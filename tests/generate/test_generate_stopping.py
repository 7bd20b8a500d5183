"""Texts that end an answer."""

import pytest

from coreai_recipes.errors import UserError
from coreai_recipes.generate.stopping import Stops


def shown(pieces: list[str], *texts: str) -> list[str]:
    stops = Stops(texts)
    return [*(stops.add(piece) for piece in pieces), stops.finish()]


def test_a_text_that_comes_in_pieces_ends_the_answer_and_is_not_shown() -> None:
    assert shown(["one E", "N", "D two", "x"], "END") == ["one ", "", "", "", ""]


def test_what_only_began_like_it_is_shown_late_and_whole() -> None:
    assert shown(["a E", "N", "Ough", " E"], "END") == ["a ", "", "ENOugh", "" + " ", "E"]


def test_the_first_of_several_ends_it() -> None:
    assert shown(["a b c"], "c", "b") == ["a ", ""]


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(UserError, match="--stop: an empty text"):
        Stops([""])
