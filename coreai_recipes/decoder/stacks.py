"""Which module stands for each stack of a recipe."""

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.primitives.layer import PLAIN, Form
from coreai_recipes.recipe.schema import DRAFT, MODEL, Recipe

MODULES: dict[str, type[StackModule]] = {MODEL: Decoder, DRAFT: Draft}


def build_stacks(recipe: Recipe, form: Form = PLAIN) -> tuple[StackModule, ...]:
    """The recipe's stacks on the meta device, its decoder first."""
    return tuple(MODULES[key].build(recipe, form) for key in recipe.stacks)
