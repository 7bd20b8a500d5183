"""The best token within a program, against an argmax over the tokens."""

import pytest
import torch
from torch import Tensor

from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.choice import LONGEST, choose, strips


def in_pieces(logits: Tensor, padding: float = 0.0) -> Tensor:
    """Logits (S, V) as a package has them."""
    pieces = Pieces(logits.shape[1])
    padded = torch.full((len(logits), pieces.rows), padding)
    padded[:, : logits.shape[1]] = logits
    return padded.view(pieces.shape(len(logits)))


@pytest.mark.parametrize("vocab_size", [1, 31, 131, 2048, 2049, 5000, 16390, 40000, 50257])
@pytest.mark.parametrize("tokens", [1, 3])
def test_it_is_the_lowest_of_the_highest(vocab_size: int, tokens: int) -> None:
    """Of float16 values below zero, of which many are equal, with padding of zeros behind them."""
    logits = (-5 - torch.rand(tokens, vocab_size)).half().float()
    ids, values = choose(in_pieces(logits), vocab_size)
    assert ids.dtype == torch.int32
    assert ids.tolist() == [[int((row == row.max()).nonzero()[0]) for row in logits]]
    assert torch.equal(values, logits.amax(1)[None])


@pytest.mark.parametrize("vocab_size", [131, 16390, 33000])
def test_every_place_can_be_the_best(vocab_size: int) -> None:
    for best in {0, 1, vocab_size // 2, vocab_size - 2, vocab_size - 1}:
        logits = torch.full((1, vocab_size), -100.0)
        logits[0, best] = -99.0
        assert choose(in_pieces(logits, padding=6.5e4), vocab_size)[0].tolist() == [[best]]


def test_no_padding_is_chosen_where_all_logits_are_as_low_as_float16_holds() -> None:
    assert choose(in_pieces(torch.full((1, 131), -59000.0)), 131)[0].tolist() == [[0]]


def test_logits_that_are_nan_give_an_id_beyond_the_vocabulary() -> None:
    assert int(choose(in_pieces(torch.full((1, 131), float("nan"))), 131)[0]) >= 131


def test_whole_strips_of_padding_are_left_out_too() -> None:
    """Of one piece of 160 columns, in strips of 32 the last is all padding: no vocabulary is cut so today."""
    assert choose(torch.zeros(1, 5, 32), 100)[0].tolist() == [[0]]
    logits = torch.full((1, 5, 32), -1.0)
    logits.view(-1)[100:] = 7.0
    logits.view(-1)[99] = 0.0
    assert choose(logits, 100)[0].tolist() == [[99]]


@pytest.mark.parametrize("vocab_size", [131, 16384, 50257, 151936, 262144, 1 << 20, 509 * 32 * 3])
def test_strips_are_counted_in_whole_numbers_of_float16(vocab_size: int) -> None:
    pieces = Pieces(vocab_size)
    rows, columns = strips(pieces.count, pieces.columns)
    assert rows * columns == pieces.rows
    assert max(rows, columns) <= LONGEST
