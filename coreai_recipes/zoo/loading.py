"""A zoo.yaml -> its cells, or every problem at once with its place."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from coreai_recipes.checkpoint.open import EMBEDDED, HUB_ID
from coreai_recipes.errors import Line, RecipeError
from coreai_recipes.lint.devices import devices
from coreai_recipes.recipe.explain import explain
from coreai_recipes.recipe.fields import FieldType
from coreai_recipes.recipe.inherit import dotted, mark_at
from coreai_recipes.recipe.loader import load_recipe, read_text
from coreai_recipes.recipe.nearest import did_you_mean, nearest
from coreai_recipes.recipe.plain import Location, Problem
from coreai_recipes.recipe.source import built_in_recipes, find_recipe
from coreai_recipes.recipe.yaml_reader import Node, read_yaml
from coreai_recipes.zoo.cells import Cell, Entry, beside, combinations, expand, matches
from coreai_recipes.zoo.schema import RANDOM, Zoo

WHOLE = FieldType(models=(Zoo,))


@dataclass(frozen=True)
class Loaded:
    """A zoo.yaml, read: where it lies, its store, and its cells in order."""

    path: Path
    store: str
    cells: tuple[Cell, ...]


def load_zoo(path: Path) -> Loaded:
    """The zoo at `path`. Raises RecipeError with every problem, `path:line:column: field: message` each, and those of
    the recipes that it names."""
    root, problems = read_yaml(read_text(path), str(path))
    if problems or root is None:
        raise RecipeError(*(Line(f"{problem.mark}: {_of_zoo(problem.message)}", "yaml") for problem in problems))
    if not isinstance(root.value, dict):
        raise RecipeError(f"{root.mark}: a mapping is required, which starts with `zoo: 1`")
    return _Loading(path, root).finish()


def _of_zoo(message: str) -> str:
    """The reader of recipes speaks of recipes."""
    return message.replace("a recipe starts with `recipe: 1`", "a zoo starts with `zoo: 1`").replace("a recipe", "it")


class _Loading:
    """One file, and what was found wrong in it."""

    def __init__(self, path: Path, root: Node) -> None:
        self.path, self.root = path, root
        self.folder = path.parent
        self.found: list[Problem] = []
        self.of_recipes: list[str] = []

    def finish(self) -> Loaded:
        """The cells; raises with everything that was found."""
        zoo = self.validated()
        # what is well said is looked at beside what is not
        entries = list(self.entries())
        self.found += [*self.checkpoint_problems(), *self.device_problems(), *self.skip_problems(zoo, entries)]
        lines = {(mark_at(self.root, each.location, each.at_key), each.message): each for each in self.found}
        ordered = sorted(lines.items(), key=lambda item: item[0][0][1:])
        own = [_line(self.root, problem) for _, problem in ordered]
        if own or self.of_recipes or zoo is None:
            raise RecipeError(*own, *self.of_recipes)
        return Loaded(self.path, store_address(self.folder, zoo.store), tuple(expand(zoo, entries)))

    def validated(self) -> Zoo | None:
        try:
            return Zoo.model_validate(self.root.plain())
        except ValidationError as error:
            self.found += explain(error, self.root, WHOLE)
            return None

    def strings(self, *location: str) -> Iterator[tuple[Location, str]]:
        """Each word of a list, where there is one, with its place."""
        node: Node | None = self.root
        for key in location:
            node = node.value.get(key) if node is not None and isinstance(node.value, dict) else None
        if node is not None and isinstance(node.value, list):
            for index, each in enumerate(node.value):
                if isinstance(each.value, str):
                    yield (*location, index), each.value

    def checkpoints(self) -> dict[str, Node]:
        node = self.root.value.get("checkpoints") if isinstance(self.root.value, dict) else None
        return node.value if node is not None and isinstance(node.value, dict) else {}

    def entries(self) -> Iterator[Entry]:
        """The recipes that can be loaded."""
        seen: dict[str, str] = {}
        for location, word in self.strings("recipes"):
            try:
                file = find_recipe(word, beside=self.folder)
            except RecipeError as error:
                lead, _, hint = str(error).partition("\n  ")
                self.found.append(Problem(location, "recipe-unknown", lead, hint or None))
                continue
            try:
                recipe = load_recipe(file)
            except RecipeError as error:
                self.of_recipes += error.problems
                continue
            if recipe.name in seen:
                where = f"`{seen[recipe.name]}` has the name {recipe.name} too: the cells of a zoo are told apart by it"
                self.found.append(Problem(location, "recipe-twice", where, "leave one out, or rename it"))
                continue
            seen[recipe.name] = word
            source = recipe.name if built_in_recipes().get(recipe.name) == file else str(file.resolve())
            yield Entry(word, source, recipe.name, recipe.export.format, self.checkpoint(word))

    def checkpoint(self, recipe: str) -> str | None:
        """What the zoo says of a recipe's checkpoint, a path made absolute: workers start elsewhere."""
        node = self.checkpoints().get(recipe)
        if node is None or not isinstance(node.value, str):
            return None
        here = beside(self.folder, node.value)
        return str(here.resolve()) if os.path.exists(here) else node.value

    def checkpoint_problems(self) -> Iterable[Problem]:
        named = [word for _, word in self.strings("recipes")]
        for key, node in self.checkpoints().items():
            at: Location = ("checkpoints", key)
            if key not in named:
                yield Problem(
                    at, "checkpoint-unused", "no recipe of that name is listed", did_you_mean(key, named), True
                )
            if isinstance(node.value, str) and not self.is_checkpoint(node.value):
                hint = f"a path is relative to {self.path.name}; a hub id is ORG/NAME or ORG/NAME@REVISION"
                yield Problem(at, "checkpoint-missing", f"`{node.value}`: no such folder or file", hint)

    def is_checkpoint(self, word: str) -> bool:
        if word == RANDOM or word.startswith(EMBEDDED) or os.path.exists(beside(self.folder, word)):
            return True
        return not word.startswith(".") and HUB_ID.fullmatch(word) is not None

    def device_problems(self) -> Iterable[Problem]:
        for location, word in self.strings("vary", "device"):
            if word.lower() not in {name.lower() for name in devices()}:
                near = nearest(word.lower(), devices())
                known = f"did you mean `{near}`?" if near else "docs/lint.md lists them"
                yield Problem(location, "device-unknown", f"`{word}` is not a device that is known", known)

    def skip_problems(self, zoo: Zoo | None, entries: list[Entry]) -> Iterable[Problem]:
        """What is skipped must be there, or a misspelt word would build what was to be left out."""
        node = self.root.value.get("skip") if isinstance(self.root.value, dict) else None
        named = [word for _, word in self.strings("recipes")]
        said = []
        for index, each in enumerate(node.value if node is not None and isinstance(node.value, list) else []):
            recipe = each.value.get("recipe") if isinstance(each.value, dict) else None
            if recipe is not None and isinstance(recipe.value, str) and recipe.value not in named:
                said.append(index)
                hint = did_you_mean(recipe.value, named)
                message = f"`{recipe.value}` is not among the recipes"
                yield Problem(("skip", index, "recipe"), "skip-recipe", message, hint)
        if zoo is None or len(entries) < len(zoo.recipes):
            return  # cells are known of a whole zoo alone
        cells = list(combinations(zoo, entries))
        for index, skip in enumerate(zoo.skip):
            if index not in said and not any(matches(skip, cell) for cell in cells):
                yield Problem(("skip", index), "skip-nothing", "no cell has all of that", "leave it out, or mend it")
        if zoo.skip and not expand(zoo, entries):
            yield Problem(("skip",), "skip-all", "every cell is skipped", "leave one of them out", True)


def store_address(folder: Path, said: str) -> str:
    """The store as fsspec takes it: an address as it is, a folder by its whole path."""
    if "://" in said:
        return said
    return str(beside(folder, said).resolve())


def _line(root: Node, problem: Problem) -> Line:
    hint = f"\n  {problem.hint}" if problem.hint else ""
    mark = mark_at(root, problem.location, problem.at_key)
    return Line(f"{mark}: {dotted(problem.location)}: {problem.message}{hint}", problem.code)
