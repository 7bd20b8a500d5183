"""A setting of `export`, put into a recipe that is there already, and what the rules say of it then."""

from typing import Any

from coreai_recipes.lint.devices import Device
from coreai_recipes.lint.findings import Lint, lint
from coreai_recipes.planning.outline import outline
from coreai_recipes.recipe import Recipe

Setting = tuple[str, Any]  # a dotted path below `export`, and its value


def with_setting(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe with one field of `export` changed. Raises ValueError for a value that cannot be."""
    path, value = setting
    said = recipe.export.model_dump()
    *parents, last = path.split(".")
    inner = said
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return recipe.model_copy(update={"export": type(recipe.export).model_validate(said)})


def rules_of(recipe: Recipe, device: Device) -> Lint:
    """What the recipe's sizes break on a device."""
    return lint(outline(recipe), device, allow=recipe.export.allowed)


def broken(found: Lint) -> tuple[int, int, int, int]:
    """How many rules are broken, by the worst of their findings: errors, warnings, notes; then errors and warnings in
    all, so that fewer places of one rule are better too."""
    worst: dict[str, str] = {}
    for finding in found.findings:  # the worst first
        worst.setdefault(finding.id, finding.level)
    levels = [*worst.values()]
    places = sum(finding.level in ("error", "warning") for finding in found.findings)
    return levels.count("error"), levels.count("warning"), levels.count("note"), places
