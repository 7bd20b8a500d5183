"""The checkpoints that a recipe, or the user, names: one for each of its stacks."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.bundle.adapting import with_adapters
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import DRAFT, MODEL

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint

    Given = Checkpoint | str | Path | None  # a checkpoint, where one is, or that of the recipe

# by stack: what a sentence calls it, and the option that names its checkpoint
CALLED = {MODEL: "the recipe", DRAFT: "the recipe's draft"}
OPTIONS = {MODEL: "--checkpoint SRC", DRAFT: "--draft SRC"}


def find_checkpoint(recipe: Recipe, given: "Given", key: str = MODEL) -> "Checkpoint":
    """`given` opened, or the checkpoint that the reference of the recipe's stack `key` names."""
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.checkpoint.open import open_checkpoint

    if isinstance(given, Checkpoint):
        return given
    if given is not None:
        return open_checkpoint(given)
    reference = recipe.stacks[key].reference
    if reference is None or reference.checkpoint is None:
        raise CheckpointError(f"{recipe.name}: {CALLED[key]} names no checkpoint: pass one with {OPTIONS[key]}")
    try:
        return open_checkpoint(reference.checkpoint)
    except CheckpointError as error:
        hint = f"{CALLED[key]} names it; pass a folder or a GGUF file of the same weights with {OPTIONS[key]}"
        raise CheckpointError(f"{error}\n  {hint}") from None


def find_sources(
    recipe: Recipe,
    given: "Mapping[str, Checkpoint | str | Path | None]",
    keys: Collection[str] | None = None,
    adapters: Mapping[str, str] | None = None,
) -> "tuple[Recipe, dict[str, Checkpoint]]":
    """The recipe, with the draft that was given where it has none, and by stack the checkpoints: of `keys`, or of all
    its stacks and those that were given. The model's has the recipe's adapters, which lie where `adapters` says by
    name, or the recipe."""
    if keys is None:
        keys = dict.fromkeys([*recipe.stacks, *(key for key, source in given.items() if source is not None)])
    sources = {key: find_checkpoint(recipe, given.get(key), key) for key in keys}
    if MODEL in sources:
        sources[MODEL] = with_adapters(recipe, sources[MODEL], adapters)
    if DRAFT in sources and recipe.draft is None:
        from coreai_recipes.recipe.importing.assembling import with_draft

        recipe = with_draft(recipe, sources[DRAFT].config)
    return recipe, sources
