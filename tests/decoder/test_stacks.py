"""A recipe gives its stacks, and what goes over them asks each for its own."""

from pathlib import Path

import pytest

from coreai_recipes.bundle.sources import find_sources
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import PER_LAYER_TABLE, Decoder, exported_form
from coreai_recipes.decoder.stacks import MODULES, build_stacks
from coreai_recipes.errors import CheckpointError
from coreai_recipes.primitives.layer import Form
from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.parameters import own_parameters, raw_tables, stored_parameters

GEMMA = Path(__file__).parents[2] / "examples/gemma4-tiny"


def test_a_recipe_gives_its_stacks_in_running_order() -> None:
    stacks = load_recipe("gemma4-tiny").stacks
    assert [(key, stack.prefix, stack.weights.names) for key, stack in stacks.items()] == [
        ("model", "", "gemma4"),
        ("draft", "draft.", "gemma4_assistant"),
    ]
    assert stacks.keys() == MODULES.keys()
    assert list(load_recipe("tiny-llama").stacks) == ["model"]


def test_each_stack_is_built_in_its_own_form() -> None:
    """What is scaled is the target's stream: its draft's stays as it is."""
    recipe = load_recipe("gemma4-tiny", ["export.residual_scale=0.5", "export.norm=mirrored"])
    decoder, draft = build_stacks(recipe, exported_form(recipe))
    assert isinstance(decoder, Decoder)
    assert isinstance(draft, Draft)
    assert decoder.form.residual_scale == 0.5
    assert draft.form == Form(folded=decoder.form.folded, mirrored=True)
    with pytest.raises(ValueError, match=r"^tiny-llama has no draft$"):
        Draft.build(load_recipe("tiny-llama"))


def test_parameters_of_a_package_go_over_the_stacks_and_are_told_apart_by_their_prefix() -> None:
    stacks = build_stacks(load_recipe("gemma4-tiny"))
    stored, tables, own = (each(stacks).shapes for each in (stored_parameters, raw_tables, own_parameters))
    assert list(tables) == [PER_LAYER_TABLE]
    assert stored.keys() | tables.keys() == own.keys()
    for stack in stacks:
        named = {stack.of.prefix + name for name, _ in stack.named_parameters() if name not in stack.whole_numbers}
        assert {name for name in own if name.startswith("draft.") == (stack.of.key == "draft")} == named


def test_stacks_without_a_checkpoint_are_not_bound() -> None:
    recipe, sources = find_sources(load_recipe("gemma4-tiny"), {})
    stacks = build_stacks(recipe)
    whole = bind_stacks(stacks, sources)
    assert set(whole) == {stack.of.prefix + name for stack in stacks for name, _ in stack.named_parameters()}
    assert set(bind_stacks(stacks, {"model": open_checkpoint(GEMMA)})) == {n for n, _ in stacks[0].named_parameters()}


def test_a_stack_that_names_no_checkpoint_says_which_option_does() -> None:
    recipe = load_recipe("gemma4-tiny", ["draft.reference.checkpoint=null"])
    with pytest.raises(CheckpointError, match=r"the recipe's draft names no checkpoint: pass one with --draft SRC$"):
        find_sources(recipe, {"model": GEMMA})
    with pytest.raises(CheckpointError, match=r"the recipe names no checkpoint: pass one with --checkpoint SRC$"):
        find_sources(load_recipe("tiny-llama", ["reference=null"]), {})
