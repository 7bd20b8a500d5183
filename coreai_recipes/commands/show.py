"""`recipe show`: a recipe as it is after what it extends."""

from coreai_recipes.commands.options import OverridesOption, RecipeArgument


def show(recipe: RecipeArgument, overrides: OverridesOption = None) -> None:
    """Print a recipe with `extends` and `like` resolved, as YAML."""
    from coreai_recipes.recipe import load_resolved
    from coreai_recipes.recipe.yaml_writer import write_yaml

    resolved = load_resolved(recipe, overrides or ())
    for note in resolved.notes:
        print(f"# {note}")
    print(write_yaml(resolved.data), end="")
