"""Recipes with one thing changed, and a small model saved as a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from families import Pair

from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.recipe import Recipe

Saved = tuple[Recipe, Checkpoint]
Export = Callable[[Recipe, Checkpoint], Path]


def save(pair: Pair, folder: Path) -> Saved:
    pair.model.save_pretrained(folder)
    return pair.recipe, open_checkpoint(folder)


def change(recipe: Recipe, **model: object) -> Recipe:
    """The recipe with other fields in `model`."""
    content = recipe.model_dump()
    content["model"] |= model
    return Recipe.model_validate(content)


def without_rotary(recipe: Recipe, layer: int) -> Recipe:
    """The recipe with one layer's rotary removed: that layer becomes a kind of its own."""
    kinds = recipe.model_dump()["model"]["kinds"]
    layers = list(recipe.model.layer_kinds)
    kinds["still"] = {**kinds[layers[layer]], "rotary": {"kind": "none"}}
    layers[layer] = "still"
    return change(recipe, kinds=kinds, layers=layers)


def with_kind(recipe: Recipe, kind: str, **parts: dict[str, Any]) -> Recipe:
    """The recipe with other fields in the parts (`rotary`, `attention`) of one kind."""
    kinds = recipe.model_dump()["model"]["kinds"]
    for part, fields in parts.items():
        kinds[kind][part] |= fields
    return change(recipe, kinds=kinds)
