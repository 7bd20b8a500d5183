"""The package of every dense mechanism, call by call, against the torch decoder that it was made of."""

from typing import Any

import pytest
import torch
from figures import psnr
from programs import dense_recipe, export, filled, random_weights, read_model

from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts.logits import choices

pytestmark = pytest.mark.xdist_group(__name__)

FLOOR = 90.0
CALLS = (("prefill", 12), ("prefill", 9), ("decode", 1), ("score", 4), ("decode", 1), ("prefill", 12), ("decode", 1))


@pytest.fixture(scope="module")
def package(made: Any, cache: FragmentCache) -> Any:
    return made("dense.mlpackage", lambda folder: export(dense_recipe(score=4), folder, cache))


def test_every_call_gives_the_logits_of_the_whole_sequence(package: Any) -> None:
    """Positions 0 to 39: beyond windows, beyond the temperature's first step, padding and all."""
    recipe = dense_recipe(score=4)
    program = Program(package)
    state, position = program.make_state(), 0
    tokens = torch.randint(0, recipe.model.vocab_size, (1, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = filled(recipe)(tokens)[0]
    for name, count in CALLS:
        ids = torch.zeros(1, recipe.export.functions.queries[name], dtype=torch.int32)
        ids[0, :count] = tokens[0, position : position + count]
        inputs = {"input_ids": ids, "position": torch.tensor([position], dtype=torch.int32)}
        if name != "decode":
            inputs["count"] = torch.tensor([count], dtype=torch.int32)
        found = choices(program.function(name)(inputs, state), recipe.model.vocab_size)
        position += count
        found = found[:count]
        expected = whole[position - len(found) : position]
        assert psnr(expected, found) >= FLOOR, (name, position)
    assert position == tokens.shape[1]


def test_the_head_takes_its_bias_and_its_projection(package: Any) -> None:
    weights = random_weights(dense_recipe(score=4))
    assert {"head.bias", "head.projection.weight", "embedding.positions.weight"} <= weights.keys()
    model = read_model(package)
    assert set(model.mlProgram.functions) == {"decode", "prefill", "score"}
