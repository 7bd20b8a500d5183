"""Attention in chunks against Llama 4's, layer by layer, on what its layers are given."""

import torch
from family_configs import all_configs
from figures import psnr
from torch import Tensor

from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import ChunkedAttention, Recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint
from coreai_recipes.verification.reference import LayerRecord, Reference

S = 30  # more than four chunks


def small() -> Recipe:
    return recipe_from_config(all_configs()["llama4_text-unusual"], "small").recipe


def both_chunks(recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """Their and our attention, `recipe`'s with the weights of the small model, in each layer that sees a chunk."""
    checkpoint = RandomCheckpoint(small())
    records: list[LayerRecord] = []
    Reference(small(), checkpoint).run(range(S), records.append)
    decoder = build_decoder(recipe)
    fill_from(decoder, bind_weights(decoder, checkpoint))
    zero, all_real = torch.zeros(1, dtype=torch.int32), torch.full((1,), S, dtype=torch.int32)
    inputs = decoder.front.see(decoder.front.call(S, cached=False), zero, all_real)
    found = []
    for layer, record in zip(decoder.layers, records, strict=True):
        if isinstance(recipe.model.kinds[layer.kind].attention, ChunkedAttention):
            n = layer.attention_norm(record.input.t()[None, :, None])
            y = layer.attention(n, inputs[layer.kind], NoCache())
            found.append((record.attention, y.squeeze(2)[0].t()))
    return found


def test_a_chunk_that_is_one_longer_is_seen() -> None:
    data = small().model_dump()
    for kind in data["model"]["kinds"].values():
        if kind["attention"]["kind"] == "chunked":
            kind["attention"]["chunk"] += 1
    assert max(psnr(*pair) for pair in both_chunks(Recipe.model_validate(data))) < 60


def test_the_first_of_a_chunk_sees_itself_alone() -> None:
    positions = torch.arange(9)
    seen = (mask(positions, positions, None, chunk=4)[0, :, 0] == 0).t()  # (queries, keys)
    assert seen[4].nonzero().flatten().tolist() == [4]
    assert seen[7].nonzero().flatten().tolist() == [4, 5, 6, 7]
