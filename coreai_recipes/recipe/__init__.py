"""The recipe language: its schema and rules, the loader, and the recipes that ship with the package.

Nothing here imports torch, and nothing is imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreai_recipes.recipe.catalogue import list_recipes
    from coreai_recipes.recipe.editor_schema import json_schema, write_schema
    from coreai_recipes.recipe.loader import Resolved, load_recipe, load_resolved, recipe_text
    from coreai_recipes.recipe.schema import Recipe
    from coreai_recipes.recipe.source import built_in_recipes, data_folder, find_recipe

_HOMES = {
    "Recipe": "schema",
    "Resolved": "loader",
    "built_in_recipes": "source",
    "data_folder": "source",
    "find_recipe": "source",
    "json_schema": "editor_schema",
    "list_recipes": "catalogue",
    "load_recipe": "loader",
    "load_resolved": "loader",
    "recipe_text": "loader",
    "write_schema": "editor_schema",
}

__all__ = [
    "Recipe",
    "Resolved",
    "built_in_recipes",
    "data_folder",
    "find_recipe",
    "json_schema",
    "list_recipes",
    "load_recipe",
    "load_resolved",
    "recipe_text",
    "write_schema",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
