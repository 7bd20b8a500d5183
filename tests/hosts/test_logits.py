"""How a vocabulary is cut into pieces, and how a host reads them."""

import pytest
import torch

from coreai_recipes.hosts.logits import Pieces, best, choices


@pytest.mark.parametrize(
    ("vocab_size", "count", "columns"),
    [
        (49152, 3, 16384),  # SmolLM2: whole
        (262144, 16, 16384),  # Gemma
        (151936, 10, 15200),  # Qwen: 64 rows of zeros
        (128256, 8, 16032),  # Llama 3: whole
        (50257, 4, 12576),  # GPT-2
        (131, 1, 160),
        (16384, 1, 16384),
        (16385, 2, 8224),
        (1, 1, 32),
        (1 << 20, 64, 16384),
    ],
)
def test_a_vocabulary_is_the_least_number_of_short_pieces(vocab_size: int, count: int, columns: int) -> None:
    pieces = Pieces(vocab_size)
    assert (pieces.count, pieces.columns, pieces.rows) == (count, columns, count * columns)
    assert pieces.rows >= vocab_size
    assert pieces.shape(1) == (1, count, columns)
    assert pieces.shape(5) == (1, 5, count, columns)


@pytest.mark.parametrize("vocab_size", [131, 16390, 32768])
def test_the_first_vocab_size_values_are_the_tokens(vocab_size: int) -> None:
    pieces = Pieces(vocab_size)
    flat = torch.arange(3 * pieces.rows).float().view(3, -1)
    expected = flat[:, :vocab_size]
    assert torch.equal(choices({"logits": flat.view(pieces.shape(3))}, vocab_size), expected)
    assert torch.equal(choices({"logits": flat[:1].view(pieces.shape(1))}, vocab_size), expected[:1])
    assert torch.equal(choices({"logits": expected[None]}, vocab_size), expected)  # as torch has them


def test_padding_is_never_the_best_token() -> None:
    logits = torch.full((1, 1, 32), 9.0)
    logits[0, 0, :5] = torch.tensor([1.0, 3.0, 3.0, 0.0, 2.0])
    assert best(choices({"logits": logits}, 5)[-1]) == 1


def test_ids_are_taken_as_they_are() -> None:
    found = choices({"ids": torch.tensor([[7, 300000]], dtype=torch.int32)}, 1 << 19)
    assert [best(row) for row in found] == [7, 300000]
