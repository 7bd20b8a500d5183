"""`recipe plan`: what a recipe costs, before any weight is read."""

import sys

import typer

from coreai_recipes.commands.options import BitsOption, JsonOption, OverridesOption, RecipeArgument


def plan(
    recipe: RecipeArgument,
    overrides: OverridesOption = None,
    bits: BitsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print sizes, memory, functions and the engine's rules, before any weight is read."""
    from coreai_recipes.planning.plan import make_plan
    from coreai_recipes.recipe.loader import compress_text
    from coreai_recipes.report import console
    from coreai_recipes.report.plan import print_costs, print_products
    from coreai_recipes.report.rules import print_lint
    from coreai_recipes.report.weights import print_storage
    from coreai_recipes.report.words import weights_in_words
    from coreai_recipes.storage.matching import load_held

    loaded = load_held(recipe, overrides or (), bits)
    planned = make_plan(loaded)
    document = planned.to_json()
    if as_json:
        console.print_json(document)
    else:
        print_costs(document)
        if bits is not None:
            print(compress_text(loaded), end="")
        print(f"weight.bin: {weights_in_words(planned.weights)}")
        if any(row["form"] != "float16" or "why" in row for row in planned.by_tensor):
            print_storage(planned.by_tensor)
        print_products(document)
        print_lint(planned.lint.to_json())
        console.print_notes(planned.notes)
        if planned.over_budget is not None:
            print(planned.over_budget, file=sys.stderr)
    raise typer.Exit(0 if planned.over_budget is None else 1)
