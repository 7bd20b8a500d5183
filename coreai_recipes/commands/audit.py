"""`recipe audit`: the range of every value over several prompts."""

from pathlib import Path
from typing import Annotated

import typer

from coreai_recipes.commands.options import CheckpointOption, JsonOption


def audit(
    targets: Annotated[list[str], typer.Argument(metavar="BUNDLE|RECIPE...")],
    checkpoint: CheckpointOption = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt a line, or .json: texts and conversations.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="HABIT", help="Leave out a habit of the engine; may be given again.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recipe there, with the scale that was found.")
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Leave a bundle as it is: no audit.json.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The range of every value of a program over several prompts, against what float16 and the engine can hold."""
    from coreai_recipes.audit.command import run_audits
    from coreai_recipes.commands import console

    with console.progress_bar() as progress:
        audits = run_audits(targets, checkpoint, prompts, without or (), apply, not no_save, progress)
    if as_json:
        console.print_json({"audits": [audited.to_json() for audited in audits]})
        return
    for audited in audits:
        console.print_table(("what", "where", ">largest", ">limit", ">margin"), audited.rows(), title=audited.title())
        console.print_notes(audited.lines())
