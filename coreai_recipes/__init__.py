"""coreai-recipes: a language model described as data, built for the Apple Neural Engine, proven equal to transformers.

    recipe = load_recipe("recipes/gemma4.yaml")
    decoder = build_decoder(recipe)
    bundle = build(recipe, checkpoint="...", out="dist")
    report = verify(bundle, checkpoint="...")

Nothing is imported before it is asked for: torch alone takes a second, and Ctrl-C is not answered before `recipe` runs.
"""

TYPE_CHECKING = False  # typing's takes as long as Python's own start
if TYPE_CHECKING:
    from coreai_recipes.bundle import Bundle, VerificationError, build, verify
    from coreai_recipes.decoder.model import build_decoder
    from coreai_recipes.errors import BundleError, CheckpointError, RecipeError, UserError
    from coreai_recipes.recipe import Recipe, load_recipe

_HOMES = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "CheckpointError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "UserError": "errors",
    "VerificationError": "bundle",
    "build": "bundle",
    "build_decoder": "decoder.model",
    "load_recipe": "recipe",
    "verify": "bundle",
}

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Recipe",
    "RecipeError",
    "UserError",
    "VerificationError",
    "build",
    "build_decoder",
    "load_recipe",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
