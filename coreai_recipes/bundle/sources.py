"""The checkpoints that a recipe, or the user, names: the target's and the draft's."""

from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint


def find_checkpoint(recipe: Recipe, checkpoint: "Checkpoint | str | Path | None") -> "Checkpoint":
    """`checkpoint` opened, or the one that the recipe's reference names."""
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.checkpoint.open import open_checkpoint

    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if checkpoint is not None:
        return open_checkpoint(checkpoint)
    if recipe.reference is None or recipe.reference.checkpoint is None:
        raise CheckpointError(f"{recipe.name}: the recipe names no checkpoint: pass one with --checkpoint SRC")
    return open_checkpoint(recipe.reference.checkpoint)


def find_draft(recipe: Recipe, draft: "Checkpoint | str | Path | None") -> tuple[Recipe, "Checkpoint | None"]:
    """The recipe with the draft that is to be built, and its checkpoint; both None where there is none."""
    if recipe.draft is None and draft is None:
        return recipe, None
    if draft is None and recipe.draft is not None and recipe.draft.reference.checkpoint is None:
        raise CheckpointError(f"{recipe.name}: the recipe's draft names no checkpoint: pass one with --draft SRC")
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.checkpoint.open import open_checkpoint

    named = draft if draft is not None else recipe.draft.reference.checkpoint  # type: ignore[union-attr]
    source = named if isinstance(named, Checkpoint) else open_checkpoint(str(named))
    if recipe.draft is None:
        from coreai_recipes.recipe.importing.assembling import with_draft

        recipe = with_draft(recipe, source.config)
    return recipe, source
