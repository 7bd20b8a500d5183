"""`recipe audit`: the range of every value over several prompts."""

from pathlib import Path
from typing import Annotated

import typer

from coreai_recipes.commands.options import CheckpointOption, JsonOption, OverridesOption


def audit(
    targets: Annotated[
        list[str], typer.Argument(metavar="BUNDLE|RECIPE...", help="Bundles, or recipes to build for the audit.")
    ],
    checkpoint: CheckpointOption = None,
    overrides: OverridesOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A file with one prompt per line, or a .json list of texts and conversations."
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="HABIT", help="Leave out one of the engine's habits. Repeatable.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recipe with the scales found to FILE.")
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Do not write audit.json into the bundle.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the range of every value over several prompts, against the limits of float16 and the engine."""
    from coreai_recipes.audit.command import run_audits
    from coreai_recipes.report import console

    with console.progress_bar() as progress:
        audits = run_audits(targets, checkpoint, prompts, without or (), apply, not no_save, progress, overrides or ())
    if as_json:
        console.print_json({"audits": [audited.to_json() for audited in audits]})
        return
    for audited in audits:
        console.print_table(("what", "where", ">largest", ">limit", ">margin"), audited.rows(), title=audited.title())
        console.print_notes(audited.lines())
