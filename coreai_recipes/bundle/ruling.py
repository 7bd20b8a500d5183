"""The engine's rules in a build: what the package breaks is said, and for a device that the recipe names it fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.lint.findings import Lint
    from coreai_recipes.lint.reading import LintInput


class RuleError(Exception):
    """A package that breaks rules which hold for the recipe's device; nothing was installed. `notes` as in a build's
    other failure."""

    def __init__(self, lint: "Lint", notes: tuple[str, ...] = ()) -> None:
        super().__init__("the package breaks rules of the engine")
        self.lint, self.notes = lint, notes


def open_for_rules(folder: Path) -> "LintInput":
    """What rules look at of a bundle, with what its recipe says of them. A program that cannot be read is drawn by the
    sizes of the recipe, as a plan's is."""
    from coreai_recipes.bundle.opened import recipe_of
    from coreai_recipes.lint.reading import open_subject

    opened, recipe = open_subject(folder), recipe_of(folder)
    export = recipe.export
    opened.units, opened.device, opened.allow = export.compute_units, export.device, export.allowed
    opened.is_for_engine = export.is_for_engine
    if opened.unread is not None:
        from coreai_recipes.planning.outline import outline

        opened.programs = outline(recipe).programs
    return opened


def find_broken(recipe: Recipe, opened: "LintInput", folder: Path, facts: Mapping[str, Any]) -> "Lint":
    """What the packages break whose programs are `opened`, while their weights are still to come.

    `facts` are those of the manifest that rules look at.
    """
    from coreai_recipes.lint.devices import find_device
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.reading import tokenizer_files

    export = recipe.export
    opened.manifest, opened.tokenizer, opened.units = dict(facts), tokenizer_files(folder), export.compute_units
    opened.is_for_engine = export.is_for_engine
    return lint(opened, None if export.device is None else find_device(export.device), allow=export.allowed)


def hold_rules(recipe: Recipe, found: "Lint", notes: tuple[str, ...] = ()) -> "Lint":
    """`found`, of a package that is written. Raises RuleError for an error where the recipe names a device, unless it
    allows it."""
    if recipe.export.device is not None and found.has_errors:
        raise RuleError(found, notes)
    return found
