"""The setting that mends what a recipe breaks on a device: each one that a rule's remedy names is tried."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from coreai_recipes.errors import RecipeError
from coreai_recipes.lint.devices import Device
from coreai_recipes.lint.findings import Lint
from coreai_recipes.planning.choosing import BITS
from coreai_recipes.planning.placing import problem_of
from coreai_recipes.planning.settings import broken, rules_of, with_setting
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.yaml_reader import read_yaml
from coreai_recipes.storage.shorthand import with_bits

SETTING = re.compile(r"--set export\.([a-z_.]+)=([A-Za-z0-9_.]+)")
NARROWER = (32, 16)  # tokens of a prefill, where a remedy leaves the number open
SHORTER = (2048, 1024, 512)  # positions of a context


def mends(recipe: Recipe, device: Device, found: Lint) -> dict[str, str | None]:
    """By each rule of an error or a warning, the words that mend it and break nothing more; None where none does."""
    wanted = {each.id: each.remedy for each in found.findings if each.level in ("error", "warning")}
    return {id_: next(_mending(recipe, device, found, id_, remedy), None) for id_, remedy in wanted.items()}


def _mending(recipe: Recipe, device: Device, before: Lint, id_: str, remedy: str) -> Iterator[str]:
    for words, changed in _candidates(recipe, remedy, id_):
        try:
            after = rules_of(changed, device)
        except RecipeError:  # layers that share caches may be larger than a package
            continue
        if _findings(after, id_) == 0 and broken(after) < broken(before):
            yield words


def _findings(found: Lint, id_: str) -> int:
    return sum(each.id == id_ and each.level in ("error", "warning") for each in found.findings)


def _candidates(recipe: Recipe, remedy: str, id_: str) -> Iterator[tuple[str, Recipe]]:
    settings = [(path, value, f"{value}") for path, word in SETTING.findall(remedy) for value in _values(path, word)]
    if id_ == "pkg-size":  # where layers that share caches are larger than a file
        settings.append(("chunks", {"share": "pass"}, "{share: pass}"))
    for path, value, word in settings:
        try:
            changed = with_setting(recipe, (path, value))
        except (ValueError, KeyError, TypeError):
            continue
        if not problem_of(changed, path.partition(".")[0]):
            words = f"export.{path}={word}"
            yield f"--set {shlex.quote(words)}", changed
    if id_ == "pkg-size" and recipe.compress is None:
        yield from ((f"--bits {bits}", with_bits(recipe, bits)) for bits in BITS if bits is not None)


def _values(path: str, word: str) -> tuple[Any, ...]:
    if word == "N":
        return NARROWER if path.endswith("prefill") else SHORTER
    root, _ = read_yaml(word, "")
    return () if root is None else (root.value,)
