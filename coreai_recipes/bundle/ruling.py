"""The engine's rules in a build: what the package breaks is said, and for a device that the recipe names it fails."""

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


def hold_rules(
    recipe: Recipe, opened: "LintInput", folder: Path, manifest: dict[str, Any], notes: tuple[str, ...] = ()
) -> "Lint":
    """What the package breaks, which was `opened` before its weights were all there.

    Raises RuleError for an error where the recipe names a device, unless it allows it.
    """
    from coreai_recipes.lint.devices import find_device
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.reading import tokenizer_files, weight_files

    export = recipe.export
    opened.files = weight_files(folder / opened.name)
    opened.manifest, opened.tokenizer, opened.units = manifest, tokenizer_files(folder), export.compute_units
    found = lint(opened, None if export.device is None else find_device(export.device), allow=export.allowed)
    if export.device is not None and found.has_errors:
        raise RuleError(found, notes)
    return found
