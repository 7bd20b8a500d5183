"""What a recipe is to the host of another project."""

from coreai_recipes.hosts.anemll import AnemllForm
from coreai_recipes.recipe.schema import Recipe


def anemll_form(recipe: Recipe) -> AnemllForm:
    """The sizes that decide a package for ANEMLL's host."""
    model_type = recipe.reference.model_type if recipe.reference else "llama"
    export, vocab_size = recipe.export, recipe.model.vocab_size
    return AnemllForm(
        recipe.name, model_type, export.context, export.functions.prefill, vocab_size, export.outputs == "ids"
    )
