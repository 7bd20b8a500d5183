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
        typer.Argument(metavar="SRC", help="A folder, a config.json, a GGUF file, or a hub id (ORG/NAME@REVISION)."),
    ],
    out: Annotated[Path | None, out_option("FILE", "Write it there; else to standard output.")] = None,
    family: Annotated[
        str | None, typer.Option("--as", metavar="FAMILY", help="Read config.json as that family's, whatever it says.")
    ] = None,
    draft: DraftOption = None,
) -> None:
    """A recipe from a checkpoint's config.json and tensor headers; what it cannot express is refused by field name."""
    from coreai_recipes.planning.authoring import new_recipe, write_new

    made = new_recipe(src, family, draft)
    if out is None:
        print(made.text, end="")
    else:
        write_new(out, made)
    for decision in made.decisions:
        print(decision, file=sys.stderr)
