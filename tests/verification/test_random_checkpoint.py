"""Random weights in a recipe's shape: the same numbers whichever rows are read, names that bind, no default left."""

from pathlib import Path

import pytest
import torch

from coreai_recipes import build_decoder, load_recipe, verify
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import count_parameters
from coreai_recipes.errors import CheckpointError, RecipeError, UserError
from coreai_recipes.recipe import built_in_recipes
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification import random_checkpoint
from coreai_recipes.verification.random_checkpoint import (
    RandomCheckpoint,
    cut_to_kinds,
    cut_vocabulary,
    make_affordable,
)


@pytest.fixture
def tiny() -> Recipe:
    return load_recipe("tiny-llama")


@pytest.mark.parametrize("name", built_in_recipes())
def test_every_built_in_recipe_binds_to_random_weights_of_its_whole_size(name: str) -> None:
    recipe = load_recipe(name)
    bindings = bind_weights(build_decoder(recipe), RandomCheckpoint(recipe))
    assert bindings.keys() == dict(build_decoder(recipe).named_parameters()).keys()


def test_reading_rows_equals_slicing_the_whole(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_checkpoint, "BLOCK_NUMBERS", 7 * 96)  # several blocks of a small table
    checkpoint = RandomCheckpoint(tiny)
    name = "model.embed_tokens.weight"
    whole = checkpoint.read(name)
    assert whole.shape == (512, 96)
    assert len(list(checkpoint.blocks(name))) == -(-512 // 7)
    for rows in (range(1), range(6, 8), range(13, 300), range(511, 512), range(512)):
        assert torch.equal(checkpoint.read(name, rows), whole[rows.start : rows.stop])


def test_values_are_those_of_the_seed_and_the_name(tiny: Recipe) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    first = RandomCheckpoint(tiny).read(name)
    assert torch.equal(first, RandomCheckpoint(tiny).read(name))
    assert not torch.equal(first, RandomCheckpoint(tiny, seed=1).read(name))
    assert not torch.equal(first, RandomCheckpoint(tiny).read(name.replace("0", "1")))


def test_no_parameter_is_at_its_default(tiny: Recipe) -> None:
    checkpoint = RandomCheckpoint(tiny)
    for name in checkpoint.tensors:
        values = checkpoint.read(name)
        assert values.std() > 0.01, name
        centre = 1.0 if "norm" in name else 0.0
        assert abs(float(values.mean()) - centre) < 0.1, name


def test_a_cut_recipe_keeps_a_layer_of_each_kind(monkeypatch: pytest.MonkeyPatch, tiny: Recipe) -> None:
    assert make_affordable(tiny) == (tiny, "all 4 layers")
    monkeypatch.setattr(random_checkpoint, "AFFORDABLE_NUMBERS", 1000)
    cut, words = make_affordable(tiny)
    assert (cut.model.layer_kinds, words) == (("full",), "one layer of each kind at full width, 1 of 4")
    assert cut == cut_to_kinds(tiny)


def test_tables_are_cut_before_layers(monkeypatch: pytest.MonkeyPatch, tiny: Recipe) -> None:
    assert make_affordable(tiny, 100) == (tiny, "all 4 layers")
    layers = count_parameters(tiny) - 512 * 96
    monkeypatch.setattr(random_checkpoint, "AFFORDABLE_NUMBERS", layers + 100 * 96)
    cut, words = make_affordable(tiny, 100)
    assert (cut.model.vocab_size, words) == (100, "all 4 layers, 100 of 512 tokens")
    assert make_affordable(tiny, 101)[1] == "one layer of each kind at full width, 1 of 4, 101 of 512 tokens"
    assert make_affordable(tiny, 512)[1] == "one layer of each kind at full width, 1 of 4"


def test_the_second_table_is_cut_as_the_first() -> None:
    second = cut_vocabulary(load_recipe("gemma4"), 1000).model.embedding.per_layer
    assert second is not None
    assert second.vocab_size == 1000


def test_verify_says_which_weights_it_used(tiny: Recipe) -> None:
    report = verify(tiny, random=True, stages=["rotary"])
    (stage,) = report.stages
    assert stage.passed
    assert stage.detail["weights"] == "random weights, seed 0"
    assert stage.detail["layers"] == "all 4 layers"


def test_random_weights_take_the_place_of_a_checkpoint_and_not_of_a_bundle(tiny: Recipe) -> None:
    for source in ({"checkpoint": "anywhere"}, {"draft": "anywhere"}):
        with pytest.raises(UserError) as caught:
            verify(tiny, random=True, **source)
        assert str(caught.value) == "--random creates the weights: leave out --checkpoint and --draft"


def test_a_recipe_of_no_known_family_is_refused(tiny: Recipe) -> None:
    reference = tiny.reference
    assert reference is not None
    other = tiny.model_copy(update={"reference": reference.model_copy(update={"model_type": "lama"})})
    with pytest.raises(RecipeError) as caught:
        RandomCheckpoint(other)
    assert list(caught.value.problems) == [
        "tiny-llama: reference.model_type: there is no model `lama`\n  did you mean `llama`?"
    ]
    with pytest.raises(RecipeError) as caught:
        RandomCheckpoint(tiny.model_copy(update={"reference": None}))
    assert list(caught.value.problems) == ["tiny-llama: reference: null; a recipe without a reference has no config"]


def test_a_recipe_that_its_family_cannot_be_is_refused_by_field() -> None:
    recipe = load_recipe("tiny-llama", ["model.placement=sandwich", "model.kinds.full.attention.qk_norm.over=head"])
    with pytest.raises(RecipeError) as caught:
        RandomCheckpoint(recipe)
    hint = "\n  write that; for another architecture, set `reference: null`"
    assert list(caught.value.problems) == [
        f"tiny-llama: model.kinds.full.attention.qk_norm.over: head here, and transformers' llama has none{hint}",
        f"tiny-llama: model.placement: sandwich here, and transformers' llama has pre{hint}",
    ]


def test_it_has_no_tokenizer(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^random weights, seed 0: has no tokenizer$"):
        RandomCheckpoint(tiny).write_tokenizer(tmp_path)
