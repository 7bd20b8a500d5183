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
    from coreai_recipes.commands import console
    from coreai_recipes.planning.plan import make_plan
    from coreai_recipes.recipe.loader import compress_text
    from coreai_recipes.storage.matching import load_held

    loaded = load_held(recipe, overrides or (), bits)
    planned = make_plan(loaded)
    if as_json:
        console.print_json(planned.to_json())
    else:
        console.print_table(("what", ">bytes", "how"), planned.rows())
        if bits is not None:
            print(compress_text(loaded), end="")
        print(f"weight.bin: {console.weights_in_words(planned.weights)}")
        if any(row["form"] != "float16" or "why" in row for row in planned.by_tensor):
            console.print_storage(planned.by_tensor)
        console.print_table(planned.workload_columns(), planned.workload_rows(), title="What a call multiplies")
        console.print_lint(planned.lint)
        console.print_notes(planned.notes)
        if planned.over_budget is not None:
            print(planned.over_budget, file=sys.stderr)
    raise typer.Exit(0 if planned.over_budget is None else 1)
