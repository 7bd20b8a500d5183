"""Where recipes are: a path first, else a built-in name. Of ours it imports only the errors."""

import os
from difflib import get_close_matches
from pathlib import Path

from coreai_recipes.errors import RecipeError


def data_folder(name: str) -> Path:
    """The folder `recipes`, `schemas` or `examples`: inside the installed package, or beside it in the repository."""
    package = Path(__file__).parents[1]
    installed = package / "_data" / name
    return installed if installed.is_dir() else package.parent / name


MODELS = (".mlmodel", ".mlmodelc", ".mlpackage")


def built_in_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(data_folder("recipes").glob("*.yaml"))}


def find_recipe(source: str | Path, beside: Path | None = None) -> Path:
    """The file of a recipe: `source` as a path (from the folder `beside`), else the built-in recipe of that name.

    Raises RecipeError when it is neither, with the nearest built-in name.
    """
    path = Path(source) if beside is None else beside / source
    if path.suffix in MODELS and os.path.exists(path):
        raise RecipeError(f"{path}: a Core ML model, not a recipe\n  `recipe lint {path}` looks at it")
    if os.path.exists(path) and not os.path.isdir(path):
        return path
    name = str(source).removesuffix(".yaml")
    known = built_in_recipes()
    if name in known:
        return known[name]
    if os.path.isdir(path):
        is_checkpoint = os.path.isfile(path / "config.json")
        hint = "it has neither a bundle's manifest.json nor a checkpoint's config.json"
        if os.path.isfile(path / "manifest.json"):
            hint = f"the recipe of the bundle in it is {path / 'recipe.yaml'}"
        elif is_checkpoint:
            hint = f"`recipe new {path}` writes a recipe for the checkpoint in it"
        raise RecipeError(f"{path}: a folder, not a recipe\n  {hint}")
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    hint += "`recipe list` names the built-in ones"
    if path.name in known and len(path.parts) > 1:  # dist/NAME, before it is built
        hint = f"`{path.name}` is a built-in recipe: `recipe build {path.name}` writes its bundle to dist/{path.name}"
    elif os.path.isfile(Path("dist", name, "manifest.json")):
        hint = f"did you mean the bundle `dist/{name}`?"
    raise RecipeError(f"{path}: no such file, and no built-in recipe of that name\n  {hint}")
