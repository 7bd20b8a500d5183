"""The token table against transformers', with and without Gemma's scale, a norm, another width and positions."""

from collections.abc import Callable

import pytest
import torch
from figures import psnr
from torch import Tensor, nn

from coreai_recipes.primitives.embedding import Embedding, LearnedPositions
from coreai_recipes.recipe import schema

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


def bloom() -> tuple[Tensor, Tensor]:
    """A norm of the rows, which a scaled stream scales behind it."""
    theirs = nn.Sequential(nn.Embedding(V, C), nn.LayerNorm(C, 1e-5))
    for parameter in theirs[1].parameters():
        parameter.normal_()
    norm = schema.LayerNorm(kind="layer", eps=1e-5)
    embedding = Embedding(V, C, 1.0, schema.Embedding(norm=norm), stream_scale=0.25)
    embedding.weight.copy_(theirs[0].weight)
    for name, parameter in embedding.norm.named_parameters():
        parameter.copy_(getattr(theirs[1], name).view(parameter.shape))
    return theirs(IDS), 4 * embedding(IDS).squeeze(2).transpose(1, 2)


def opt(offset: int = 2, narrow: int | None = 20) -> tuple[Tensor, Tensor]:
    """Rows of another width, and positions that begin at row `offset`."""
    from transformers.models.opt.modeling_opt import OPTConfig, OPTDecoder

    config = OPTConfig(vocab_size=V, hidden_size=C, word_embed_proj_dim=narrow, max_position_embeddings=30)
    theirs = OPTDecoder(config).eval()
    spec = schema.Embedding(positions=schema.LearnedPositions(count=30, offset=offset), width=narrow)
    ours = Embedding(V, C, 1.0, spec)
    ours.weight.copy_(theirs.embed_tokens.weight)
    ours.positions.weight.copy_(theirs.embed_positions.weight)
    ours.projection.weight.copy_(theirs.project_in.weight[..., None, None])
    mask = torch.ones(1, 4 + IDS.shape[1])
    added = theirs.project_in(theirs.embed_tokens(IDS)) + theirs.embed_positions(mask, 4)
    return added, ours(IDS, torch.arange(4, 9, dtype=torch.int32)).squeeze(2).transpose(1, 2)


def positions(offset: int) -> Case:
    def compare() -> tuple[Tensor, Tensor]:
        ours = LearnedPositions(schema.LearnedPositions(count=30, offset=offset), C)
        ours.weight.normal_()
        at = torch.tensor([0, 7, 29])
        return ours.weight[at + offset][None], ours(at).squeeze(2).transpose(1, 2)

    return compare


PARITY: dict[str, dict[str, Case]] = {
    "table": {"torch": plain, "gemma": gemma, "bloom_normed": bloom, "opt_projected": opt},
    "positions": {"gpt2": positions(0), "opt": positions(2)},
}


def test_an_offset_that_is_one_off_is_seen() -> None:
    reference, x = opt()
    ours = Embedding(V, C, 1.0, schema.Embedding(positions=schema.LearnedPositions(count=31, offset=1)))
    assert psnr(reference, x) >= 120
    assert ours.positions.offset == 1
    right, wrong = positions(2)(), positions(1)()
    assert psnr(right[0], wrong[1]) < 60


def test_padding_beyond_the_last_position_has_a_row() -> None:
    """position + Q may exceed the context: the gather must stay inside of its table."""
    ours = LearnedPositions(schema.LearnedPositions(count=3, offset=2), C)
    ours.weight.normal_()
    rows = ours(torch.tensor([2, 3, 40], dtype=torch.int32)).squeeze(2)[0].t()
    assert torch.equal(rows, ours.weight[[4, 4, 4]])


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
