"""The pieces of a stream against tokenizers' decoding of the whole."""

import pytest
from fake_bundle import byte_fallback_tokenizer, byte_level_tokenizer, metaspace_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from coreai_recipes.tokenizer.streaming import UNFINISHED, TextStream

TOKENIZERS = {
    "byte_level": byte_level_tokenizer(),
    "byte_fallback": byte_fallback_tokenizer(),
    "metaspace": metaspace_tokenizer(),
}


def pieces_of(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.add(token) for token in token_ids), stream.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_pieces_of_any_tokens_join_to_the_decoded_whole(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    size = tokenizer.get_vocab_size()
    some = st.integers(0, size - 1) | st.integers(size - 12, size - 1) | st.integers(0, 2)
    token_ids = data.draw(st.lists(some, max_size=30))
    assert "".join(pieces_of(tokenizer, token_ids)) == tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="aé你🙂 .\nb", max_size=20))
def test_no_piece_of_a_text_holds_half_a_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(tokenizer, token_ids)
    assert not any(UNFINISHED in piece for piece in pieces)
    assert "".join(pieces) == tokenizer.decode(token_ids)


def test_words_come_as_they_are_made() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    token_ids = [tokenizer.token_to_id(token) for token in ("▁the", "▁a", ".", "▁the")]
    assert pieces_of(tokenizer, token_ids) == ["the", " a", ".", " the", ""]


def test_a_special_token_between_two_words_keeps_their_space() -> None:
    """A decoder strips the first space of what it is given: the token before must stay in sight."""
    tokenizer = TOKENIZERS["byte_fallback"]
    token_ids = [tokenizer.token_to_id(token) for token in ("▁the", "</s>", "▁a")]
    assert pieces_of(tokenizer, token_ids) == ["the", "", " a", ""]


def test_a_run_of_byte_tokens_is_shown_when_it_ends() -> None:
    """<0x41> alone is "A"; with a stray byte after it, the run is two replacement characters."""
    tokenizer = TOKENIZERS["byte_fallback"]
    token_ids = [tokenizer.token_to_id(token) for token in ("<0x41>", "<0xE5>", "▁a")]
    assert pieces_of(tokenizer, token_ids) == ["", "", 2 * UNFINISHED + " a", ""]


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token_ids = tokenizer.encode("a🙂").ids[:-1]
    assert pieces_of(tokenizer, token_ids)[0] == "a"
    assert "".join(pieces_of(tokenizer, token_ids)) == "a" + UNFINISHED
