"""`recipe compress`: the rules of `compress` that lose least within a budget."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from coreai_recipes.commands.options import (
    CheckpointOption,
    JsonOption,
    OverridesOption,
    RecipeArgument,
    SchedulerOption,
    out_option,
)


def compress(
    recipe: RecipeArgument,
    budget: Annotated[
        str, typer.Option(metavar="BITS|kl=X", help="Bits per weight of the whole file, or nats of KL divergence.")
    ],
    checkpoint: CheckpointOption = None,
    out: Annotated[Path | None, out_option("FILE", "Write the recipe to FILE instead of standard output.")] = None,
    overrides: OverridesOption = None,
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the rules of `compress` that lose least within a budget, and write the recipe.

    With --scheduler, the forms of each matrix are measured by a task of that cluster.
    """
    from coreai_recipes.report import console
    from coreai_recipes.search.command import read_budget, run_search, write_recipe_file

    asked = read_budget(budget)
    with _measuring(scheduler) as measuring, console.progress_bar() as progress:
        found, notes, text = run_search(recipe, asked, checkpoint, overrides or (), out, progress, measuring)
    if out is not None:
        write_recipe_file(out, text)
    if as_json:
        console.print_json({**found.to_json(), "notes": list(notes), "recipe": text})
    elif out is None:
        print(text, end="")
        print("\n".join((*found.lines(), *notes)), file=sys.stderr)
    else:
        console.print_table(found.columns(), found.rows())
        console.print_notes((*found.lines(), *notes))
        print(out)


def _measuring(scheduler: str | None) -> Any:
    """What measures on a cluster, None where there is none."""
    if scheduler is None:
        return nullcontext()
    from coreai_recipes.zoo.compressing import measuring_on

    return measuring_on(scheduler)
