"""Writes how many parameters each built-in recipe has: `make schema`."""

from coreai_recipes.decoder.model import count_parameters
from coreai_recipes.recipe import built_in_recipes, load_recipe
from coreai_recipes.recipe.catalogue import PARAMETERS


def counted() -> str:
    """The file's text."""
    lines = [f"{name}: {count_parameters(load_recipe(path))}\n" for name, path in sorted(built_in_recipes().items())]
    return "# Of each built-in recipe's decoder, a tied table once. Written by `make schema`.\n" + "".join(lines)


if __name__ == "__main__":
    PARAMETERS.write_text(counted())
