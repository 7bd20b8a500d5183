"""`recipe verify`: a bundle or a recipe against transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from coreai_recipes.commands.options import (
    AdapterOption,
    CheckpointOption,
    DraftOption,
    JsonOption,
    OverridesOption,
    RuntimeOption,
    read_adapters,
)
from coreai_recipes.errors import UserError


def verify(
    target: Annotated[str, typer.Argument(metavar="BUNDLE|RECIPE", help="A bundle's folder, or a recipe.")],
    checkpoint: CheckpointOption = None,
    draft: DraftOption = None,
    overrides: OverridesOption = None,
    stage: Annotated[list[str] | None, typer.Option(metavar="STAGE", help="Run only this stage. Repeatable.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Fail if this stage is skipped. Repeatable.")
    ] = None,
    runtime: RuntimeOption | None = None,
    adapter: AdapterOption = None,
    random: Annotated[
        bool,
        typer.Option("--random", help="Verify a recipe with random weights; of a deep model, one layer of each kind."),
    ] = False,
    states: Annotated[
        bool, typer.Option("--states", help="Measure what recurrent states lose after 2,000 tokens, if it takes long.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle, or a recipe before it is built, with transformers."""
    from coreai_recipes import bundle
    from coreai_recipes.report import console
    from coreai_recipes.report.verdict import print_report

    with console.progress_bar() as progress:
        report = bundle.verify(
            _with_overrides(target, overrides or ()),
            checkpoint,
            draft=draft,
            stages=stage or None,
            require=require or (),
            runtime=runtime,
            random=random,
            adapters=read_adapters(adapter),
            states=states,
            progress=progress,
        )
    if as_json:
        console.print_json(report.to_json())
    else:
        print_report(report.to_json())
    raise typer.Exit(0 if report.passed else 1)


def _with_overrides(target: str, overrides: Sequence[str]) -> Any:
    """A recipe changed by `--set`, or the target as it is."""
    if not overrides:
        return target
    from coreai_recipes.manifest.reading import MANIFEST
    from coreai_recipes.storage.matching import load_held

    if (Path(target) / MANIFEST).exists():
        raise UserError(f"{target}: --set applies to recipes, and this is already built")
    return load_held(target, overrides)
