"""What a recipe is to the host of another project."""

from coreai_recipes.hosts.anemll import AnemllForm
from coreai_recipes.hosts.coreai_models import StaticForm
from coreai_recipes.hosts.coreai_models_dynamic import DynamicForm
from coreai_recipes.recipe.schema import Recipe


def anemll_form(recipe: Recipe) -> AnemllForm:
    """The sizes that decide a package for ANEMLL's host."""
    model_type = recipe.reference.model_type if recipe.reference else "llama"
    export, vocab_size = recipe.export, recipe.model.vocab_size
    return AnemllForm(
        recipe.name, model_type, export.context, export.functions.prefill, vocab_size, export.outputs == "ids"
    )


def static_form(recipe: Recipe) -> StaticForm:
    """The sizes that decide an asset for the runner of Apple's coreai-models."""
    model, export = recipe.model, recipe.export
    width = model.embedding.width or model.hidden_size
    return StaticForm(
        recipe.name, _tokenizer(recipe), export.context, export.functions.prefill, model.vocab_size, width
    )


def dynamic_form(recipe: Recipe) -> DynamicForm:
    """The same for the form of it that the runner takes on macOS."""
    return DynamicForm(recipe.name, _tokenizer(recipe), recipe.export.context, recipe.model.vocab_size)


def _tokenizer(recipe: Recipe) -> str:
    """Whose tokenizer it is, by the name of a model."""
    checkpoint = recipe.reference.checkpoint if recipe.reference else None
    return checkpoint or recipe.name
