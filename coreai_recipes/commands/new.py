"""`recipe new`: a recipe from a checkpoint."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from coreai_recipes.commands.options import (
    DraftOption,
    out_option,
)


def new(
    src: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A folder, config.json, GGUF file or hub id (ORG/NAME@REVISION)."),
    ],
    out: Annotated[Path | None, out_option("FILE", "Write the recipe to FILE instead of standard output.")] = None,
    family: Annotated[
        str | None,
        typer.Option("--as", metavar="FAMILY", help="Read config.json as this family's, whatever its model_type."),
    ] = None,
    draft: DraftOption = None,
) -> None:
    """Write a recipe from a checkpoint's config.json and tensor headers. What no recipe can express is named."""
    from coreai_recipes.planning.authoring import new_recipe, write_new

    made = new_recipe(src, family, draft)
    if out is None:
        print(made.text, end="")
    else:
        write_new(out, made)
    for decision in made.decisions:
        print(decision, file=sys.stderr)
