"""The token table against transformers', with and without Gemma's scale."""

from collections.abc import Callable

import pytest
import torch
from figures import psnr
from torch import Tensor, nn

from coreai_recipes.primitives.embedding import Embedding

V, C = 131, 72
IDS = torch.tensor([[0, 130, 7, 7, 65]])
Case = Callable[[], tuple[Tensor, Tensor]]


def ours(weight: Tensor, scale: float, ids: Tensor = IDS) -> Tensor:
    """(1, S, C)."""
    embedding = Embedding(*weight.shape, scale)
    embedding.weight.copy_(weight)
    x = embedding(ids)
    assert x.shape == (1, weight.shape[1], 1, ids.shape[1])
    return x.squeeze(2).transpose(1, 2)


def plain() -> tuple[Tensor, Tensor]:
    theirs = nn.Embedding(V, C)
    return theirs(IDS), ours(theirs.weight, 1.0)


def gemma() -> tuple[Tensor, Tensor]:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    theirs = Gemma3TextScaledWordEmbedding(V, C, 0, embed_scale=C**0.5)
    theirs.weight.normal_()
    return theirs(IDS), ours(theirs.weight, C**0.5)


PARITY: dict[str, dict[str, Case]] = {"table": {"torch": plain, "gemma": gemma}}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_an_embedding_equals_its_reference(kind: str, name: str) -> None:
    reference, x = PARITY[kind][name]()
    assert psnr(reference, x) >= 120


def test_rows_are_taken_as_they_are_when_there_is_no_scale() -> None:
    reference, x = plain()
    assert torch.equal(x, reference)


def test_ids_may_be_int32_as_in_the_package() -> None:
    weight = torch.randn(V, C)
    assert torch.equal(ours(weight, 1.0, IDS.to(torch.int32)), ours(weight, 1.0))
