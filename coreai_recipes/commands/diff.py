"""`recipe diff`: in what two models differ."""

import sys
from typing import Annotated

import typer

from coreai_recipes.commands.options import (
    JsonOption,
)


def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A recipe or a checkpoint.")],
    other: Annotated[str, typer.Argument(metavar="B", help="A recipe or a checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two recipes, or a recipe and a checkpoint's config.json, field by field."""
    from coreai_recipes.planning.authoring import compare
    from coreai_recipes.report import console
    from coreai_recipes.report.words import word

    found = compare(one, other, lambda note: print(note, file=sys.stderr))
    if as_json:
        console.print_json([{"field": f.path, "layers": list(f.layers), "a": f.one, "b": f.other} for f in found])
    elif found:
        console.print_table(("field", one, other), [(f.where, word(f.one), word(f.other)) for f in found])
    else:
        print("the same model")
    raise typer.Exit(1 if found else 0)
