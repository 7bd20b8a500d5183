"""A recipe's file, what it extends, and `--set` -> a `Recipe`, or every problem at once with its place."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from coreai_recipes.errors import Line, RecipeError
from coreai_recipes.recipe.explain import explain
from coreai_recipes.recipe.inherit import (
    MAX_CHAIN,
    Merging,
    apply_override,
    dotted,
    expand_likes,
    mark_at,
    merge,
    shown,
)
from coreai_recipes.recipe.plain import Location, Problem
from coreai_recipes.recipe.plugins import load_installed
from coreai_recipes.recipe.rules import find_problems
from coreai_recipes.recipe.schema import Compress, Recipe
from coreai_recipes.recipe.source import find_recipe
from coreai_recipes.recipe.yaml_reader import MAX_BYTES, Mark, Node, YAMLProblem, read_yaml, shorten
from coreai_recipes.recipe.yaml_writer import write_yaml

MAX_PROBLEMS = 100


@dataclass(frozen=True)
class Resolved:
    """A recipe with the way it came about.

    Attributes:
        recipe: the validated recipe.
        data: the recipe as written, after `extends`, `--set` and `like`: plain mappings, lists and scalars.
        notes: what was dropped on the way, for `recipe show`.
        root: `data` with the place of each value.
    """

    recipe: Recipe
    data: dict[str, Any]
    notes: tuple[str, ...]
    root: Node = field(repr=False, compare=False)

    def describe(self, problems: Iterable[Problem]) -> list[Line]:
        """Problems that are found after loading, as it tells its own: `path:line:column: dotted.field: message`."""
        lines: dict[tuple[Mark, str, str], Line] = {}
        for problem in problems:
            mark = mark_at(self.root, problem.location, problem.at_key)
            hint = f"\n  {problem.hint}" if problem.hint else ""
            line = Line(f"{mark}: {dotted(problem.location)}: {problem.message}{hint}", problem.code)
            lines.setdefault((mark, _field_for_all(problem.location), problem.message), line)
        return list(lines.values())

    def file_of(self, location: Location) -> Path | None:
        """The file in which a location was written, None where it was said otherwise (`--set`)."""
        mark = mark_at(self.root, location)
        return Path(mark.place) if mark.line else None

    def text(self) -> str:
        """The whole recipe as YAML with its defaults: a bundle's recipe.yaml, which loads back as an equal recipe."""
        return recipe_text(self.recipe)

    @cached_property
    def sha256(self) -> str:
        """The digest of `text()`: recipes that say the same have the same one."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at a path, else the built-in one of that name, with `KEY=VALUE` overrides.

    Raises RecipeError with every problem, one `path:line:column: dotted.field: message` each.
    """
    return load_resolved(source, overrides).recipe


def load_resolved(source: str | Path, overrides: Sequence[str] = ()) -> Resolved:
    """As `load_recipe`, with the merged data and the notes of merging."""
    load_installed()
    loading = _Loading()
    root = loading.load(find_recipe(source))
    for override in overrides:
        root = loading.set(root, override)
    return loading.finish(root)


def load_sealed(path: Path) -> Recipe:
    """The resolved recipe of a bundle: one file, which extends nothing. Raises as `load_recipe`."""
    load_installed()
    loading = _Loading()
    root = loading.read(path)
    if isinstance(root.value, dict) and "extends" in root.value:
        loading.report(
            root.keys["extends"], "extends", "extends-sealed", "a bundle's recipe is complete and extends no other"
        )
        loading.stop()
    return loading.finish(root).recipe


def validate_data(data: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe of plain data that was not written in a file, or what is wrong with it, by its place in the data."""
    load_installed()
    root, problems = read_yaml(write_yaml(data).encode(), "")
    if root is None or problems:
        raise RecipeError(*(f"the config: {problem.message}" for problem in problems))
    return _validate(root.plain(), root)


def compress_text(recipe: Recipe) -> str:
    """The `compress` of a recipe as it stands in its text; none where it says none."""
    said = _dump(recipe).get("compress")
    return "" if said is None else write_yaml({"compress": _kind_first(said)})


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML in the schema's order; what is unsaid and without a value is left out."""
    data = _dump(recipe)
    fields = Recipe.model_fields.items()
    return write_yaml(
        {name: _kind_first(data.get(name)) for name, info in fields if name in data or info.is_required()}
    )


def _dump(recipe: Recipe) -> dict[str, Any]:
    """As plain data, without what absence says too."""
    data = recipe.model_dump(exclude_none=True)
    if recipe.compress is not None:
        data["compress"].pop("calibration", None)
        if recipe.compress.calibration != Compress.model_fields["calibration"].default:
            said = recipe.compress.calibration
            data["compress"]["calibration"] = None if said is None else said.model_dump()
    return data


def _kind_first(data: Any) -> Any:
    """Inherited fields come first in a model; a reader wants the `kind` before them, or what a rule is for."""
    if isinstance(data, dict):
        return {key: _kind_first(data[key]) for key in sorted(data, key=lambda key: (key != "match", key != "kind"))}
    return [_kind_first(entry) for entry in data] if isinstance(data, list) else data


class _Loading:
    """One load: the files in the order they were opened, and what was found wrong in any of them."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.lines: dict[tuple[Mark, str, str], Line] = {}
        self.merging = Merging()

    def load(self, path: Path, chain: tuple[Path, ...] = ()) -> Node:
        """The mapping of a file, merged over what it extends."""
        root = self.read(path)
        extends = root.value.get("extends") if isinstance(root.value, dict) else None
        if extends is None:
            return root
        below = (
            {key: node for key, node in root.value.items() if key != "extends"} if isinstance(root.value, dict) else {}
        )
        root = replace(root, value=below)
        chain = (*chain, path)
        if not isinstance(extends.value, str):
            self.report(
                extends.mark,
                "extends",
                "extends-invalid",
                f"{shown(extends)} is neither a path nor the name of a recipe",
            )
            self.stop()
        try:
            parent = find_recipe(str(extends.value), beside=path.parent)
        except RecipeError as error:
            self.report(extends.mark, "extends", "extends-unknown", *str(error).split("\n  "))
            self.stop()
        names = " -> ".join(str(file) for file in (*chain, parent))
        if any(_same(parent, file) for file in chain):
            self.report(extends.mark, "extends", "extends-circle", f"a cycle: {names}")
            self.stop()
        if len(chain) > MAX_CHAIN:
            self.report(
                extends.mark,
                "extends",
                "extends-long",
                f"more than {MAX_CHAIN} recipes that extend one another: {names}",
            )
            self.stop()
        return merge(self.load(parent, chain), root, self.merging)

    def read(self, path: Path) -> Node:
        place = str(path)
        self.places.append(place)
        root, problems = read_yaml(read_text(path), place)
        self.report_yaml(problems)
        if root is None:
            self.stop()
        if not isinstance(root.value, dict):
            self.report(root.mark, "", "not-a-mapping", f"{shown(root)} at the top level, where a mapping is required")
            self.stop()
        return root

    def set(self, root: Node, override: str) -> Node:
        """The recipe with one `KEY=VALUE` applied."""
        place = f"--set {shorten(override, 100)}"
        self.places.append(place)
        key, equals, text = override.partition("=")
        if not equals or not key:
            self.report(Mark(place), "", "set-invalid", "must be KEY=VALUE, as in export.context=512")
            return root
        value, problems = read_yaml(text, place)
        self.report_yaml(problems)
        if value is None or problems:
            return root
        merging = Merging(notes=self.merging.notes)
        root = apply_override(root, key, value, merging)
        for problem in merging.problems:
            self.report_at(Mark(place), problem)
        return root

    def finish(self, written: Node) -> Resolved:
        """The recipe of a merged tree after `like`; raises with everything that was found, here and before."""
        root = expand_likes(written, self.merging)
        for problem in self.merging.problems:
            self.report_at(mark_at(written, problem.location), problem)
        if root is None:
            self.stop()
        data = root.plain()
        recipe, problems = _validate(data, root)
        for problem in sorted(problems, key=self.depth):
            if not self.is_consequence(problem):
                self.report_at(mark_at(root, problem.location, problem.at_key), problem)
        if self.lines or recipe is None:
            self.stop()
        return Resolved(recipe, data, tuple(self.merging.notes), root)

    def is_consequence(self, problem: Problem) -> bool:
        """Whether a kind lacks something only because its `like` leads nowhere."""
        in_kind = _is_in_kinds(problem.location) and len(problem.location) > 3
        lacks = problem.code in ("missing", "kind-unsaid", "rotary-unsaid")
        return in_kind and lacks and problem.location[:3] in self.merging.broken

    def depth(self, problem: Problem) -> int:
        """Own problems before inherited ones, so that a mistake is named where it was written."""
        is_kind = _is_in_kinds(problem.location) and len(problem.location) > 2
        return self.merging.depths.get(problem.location[:3], 0) if is_kind else 0

    def report_yaml(self, problems: Iterable[YAMLProblem]) -> None:
        for problem in problems:
            self.report(problem.mark, "", "yaml", problem.message)

    def report_at(self, mark: Mark, problem: Problem) -> None:
        """One problem; what a kind inherits counts once, whichever kinds inherit it."""
        self.report(
            mark,
            dotted(problem.location),
            problem.code,
            problem.message,
            problem.hint,
            _field_for_all(problem.location),
        )

    def report(self, mark: Mark, field: str, code: str, message: str, hint: str | None = None, same: str = "") -> None:
        """One line, unless there is one of that message about the `same` field at that place."""
        lead = f"{mark}: {field}: " if field else f"{mark}: "
        line = f"{lead}{message}\n  {hint}" if hint else f"{lead}{message}"
        self.lines.setdefault((mark, same, message), Line(line, code))

    def stop(self) -> NoReturn:
        """Raise with every problem so far, by file, line and column."""
        order = sorted(self.lines.items(), key=lambda item: (self.places.index(item[0][0].place), item[0][0][1:]))
        lines = [line for _, line in order]
        if len(lines) > MAX_PROBLEMS:
            lines[MAX_PROBLEMS:] = [Line(f"{self.places[0]}: more problems follow: fix these first", "more")]
        raise RecipeError(*lines)


def _validate(data: Any, root: Node) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or what the fields and the rules between them find wrong, side by side."""
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        found = find_problems(data)
        broken = [
            detail for detail in error.errors(include_url=False, include_input=False) if detail["type"] == "rules"
        ]
        if broken:
            # The model has the defaults that a rule may need; the data has the numbers as they were written.
            whole: list[Problem] = broken[0]["ctx"]["problems"]
            same = [problem.location for problem in whole] == [problem.location for problem in found]
            return None, found if same else whole
        said: set[Location] = {problem.location for problem in found}
        problems = [
            problem
            for problem in explain(error, root)
            if not (problem.location in said and problem.code == "kind-unsaid")
        ]
        return None, [*problems, *found]


def _is_in_kinds(location: Location) -> bool:
    return location[:2] in (("model", "kinds"), ("draft", "kinds"))


def _field_for_all(location: Location) -> str:
    """A field by a name that it has in whichever kinds inherit it."""
    return dotted(location[3:] if _is_in_kinds(location) else location)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def read_text(path: Path) -> bytes:
    """A file of YAML, as far as its reader goes. Raises RecipeError where there is none to be read."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _open_at_once(path: str, flags: int) -> int:
    """A pipe that nobody writes to is empty, and not waited for; one that somebody does is read to its end."""
    file = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(file, True)
    return file
