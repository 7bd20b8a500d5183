"""`recipe lint`: the rules of the Neural Engine that a program breaks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from coreai_recipes.commands.options import JsonOption, OverridesOption
from coreai_recipes.errors import UserError
from coreai_recipes.terminal.streams import check_text


def lint_(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="PACKAGE|BUNDLE|RECIPE",
            help="An .mlpackage, .mlmodel or .aimodel from any source, a bundle, or a recipe.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Check only the rules of this device or chip, such as iphone-17-pro or M1.",
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="ID", help="Explain a rule: what it asks for, its source and its remedy."),
    ] = None,
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a package, bundle or recipe against the Neural Engine's known rules. No weight is read."""
    from coreai_recipes.lint.devices import find_device
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.rule import find_rule
    from coreai_recipes.report import console
    from coreai_recipes.report.rules import print_lint, print_rule

    named = None if device is None else find_device(device)
    rule = None if explain is None else find_rule(explain)
    if target is None:
        if rule is None:
            raise UserError("recipe lint: give a package, a bundle or a recipe, or a rule with --explain")
        if as_json:
            console.print_json(rule.to_json())
        else:
            print_rule(rule.to_json())
        return
    subject = _open_subject(target, overrides or ())
    if named is None and subject.device is not None:
        named = find_device(subject.device)
    found = lint(subject, named, () if rule is None else (rule.id,), subject.allow)
    if as_json:
        console.print_json(found.to_json())
    else:
        if rule is not None:
            print_rule(rule.to_json())
        print_lint(found.to_json())
    raise typer.Exit(1 if found.has_errors else 0)


def _open_subject(target: str, overrides: Sequence[str]) -> Any:
    """A saved program or bundle as it lies there, a recipe by its sizes."""
    from coreai_recipes.lint.reading import is_bundle, is_saved, open_subject

    path = Path(check_text(target, "PACKAGE|BUNDLE|RECIPE"))
    if is_saved(path):
        if overrides:
            raise UserError(f"{path}: --set applies to recipes, and this is already built")
        if is_bundle(path):
            from coreai_recipes.bundle.ruling import open_for_rules

            return open_for_rules(path)
        return open_subject(path)
    from coreai_recipes.planning.outline import outline
    from coreai_recipes.storage.matching import load_held

    return outline(load_held(target, overrides))
