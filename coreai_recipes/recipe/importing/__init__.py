"""config.json -> recipe, and back: one machinery, and a file of rules for each family in `recipe/families`."""

from coreai_recipes.recipe.importing.family import Family, family_names, load_family
from coreai_recipes.recipe.importing.reading import read_model
from coreai_recipes.recipe.importing.reversing import check_reference, config_for

__all__ = ["Family", "check_reference", "config_for", "family_names", "load_family", "read_model"]
