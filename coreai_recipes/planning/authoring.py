"""Recipes from checkpoints: `recipe new` and `recipe diff`, where config.json meets the tensors' headers."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.checkpoint.adapter import CONFIG
from coreai_recipes.checkpoint.open import open_config, open_headers
from coreai_recipes.errors import CheckpointError, RecipeError, UserError
from coreai_recipes.recipe.importing.assembling import Imported, recipe_from_config, with_draft
from coreai_recipes.recipe.importing.comparing import Difference, compare_models
from coreai_recipes.recipe.importing.writing import write_recipe
from coreai_recipes.recipe.loader import load_recipe
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.recipe.source import built_in_recipes

if TYPE_CHECKING:
    from collections.abc import Callable

    from coreai_recipes.checkpoint.adapter import Adapter
    from coreai_recipes.checkpoint.base import Checkpoint

# editors complete and check by it; `recipe schema > recipe.schema.json` writes the file
SCHEMA_LINE = "yaml-language-server: $schema=recipe.schema.json"
RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class NewRecipe:
    """A recipe's text, what it says, and what was decided where the config left room."""

    text: str
    recipe: Recipe
    decisions: tuple[str, ...]


def new_recipe(src: str | Path, family: str | None = None, draft: str | Path | None = None) -> NewRecipe:
    """The recipe of a checkpoint, from its config.json and, where there are any, its tensors' headers alone; and of a
    `draft` for it.

    An adapter's folder stands for the checkpoint that it names as its base, with the adapter merged into it.
    `family` reads the config by that family's rules, whatever its model_type. Raises CheckpointError with every field
    that is not understood and every tensor that does not fit.
    """
    adapter, src = _base_of(src)
    checkpoint = open_config(src) if adapter is None else _open_base(adapter, src)
    source = _hub_id(src)
    name = _name_after(checkpoint, source) if adapter is None else _name_of(adapter.path.resolve().name)
    imported = recipe_from_config(checkpoint.config, name, source, family)
    if draft is not None:
        drafter = open_headers(draft)
        imported = replace(imported, recipe=with_draft(imported.recipe, drafter.config, _hub_id(draft)))
        _check_draft(imported.recipe, drafter)
    recipe, note = _settle_head(imported.recipe, checkpoint)
    imported = replace(imported, recipe=recipe)
    unchecked = _check_tensors(imported.recipe, checkpoint)
    if adapter is not None:
        imported = replace(imported, recipe=_with_adapter(imported.recipe, adapter, checkpoint))
    decisions = [*_decisions(imported, source, family), *((note,) if note else ()), *unchecked]
    if adapter is not None:
        decisions.insert(0, f"adapters: {adapter.path}, whose base is {src}")
    heading = [SCHEMA_LINE, f"Numbers: config.json of {source or checkpoint.source}.", *_wrapped(imported.family.about)]
    text = write_recipe(imported.recipe, heading, _notes(imported))
    return NewRecipe(text, imported.recipe, tuple(decisions))


def _hub_id(src: str | Path) -> str | None:
    return None if os.path.exists(os.path.expanduser(src)) else str(src)


def compare(one: str, other: str, say: "Callable[[str], None] | None" = None) -> list[Difference]:
    """Every field in which two recipes, or a recipe and a checkpoint, describe different models.

    `say` is told what of a checkpoint was decided by its tensors, or cannot be by its headers.
    """
    ones, others = _open_either(one, say), _open_either(other, say)
    return compare_models(ones.model, others.model)


def _open_either(src: str, say: "Callable[[str], None] | None") -> Recipe:
    """A recipe by its path or name, else that of a checkpoint's config.json and headers."""
    if src.endswith(RECIPE_SUFFIXES) or src in built_in_recipes():
        return load_recipe(src)
    if not os.path.exists(os.path.expanduser(src)) and "/" not in src:
        return load_recipe(src)  # says that there is neither
    checkpoint = open_config(src)
    imported = recipe_from_config(checkpoint.config, "other")
    recipe, note = _settle_head(imported.recipe, checkpoint)
    for each in (*imported.notes, *((note,) if note else ())):
        if say is not None:
            say(f"{src}: {each}")
    return recipe


def _settle_head(recipe: Recipe, checkpoint: "Checkpoint") -> tuple[Recipe, str | None]:
    """The recipe with the head that the checkpoint's tensors have, and a line where they decided that."""
    if not checkpoint.tensors:
        return recipe, None
    from coreai_recipes.decoder.filling import describe_head

    return describe_head(recipe, checkpoint)


def _check_tensors(recipe: Recipe, checkpoint: "Checkpoint") -> list[str]:
    """Raise CheckpointError where the headers do not fit the recipe; what could not be compared, in words."""
    from coreai_recipes.decoder.filling import bind_weights
    from coreai_recipes.decoder.model import build_decoder

    if not checkpoint.tensors:
        return [f"its tensors were not checked: {checkpoint.path} holds config.json and no weights"]
    try:
        decoder = build_decoder(recipe)
    except RecipeError as error:
        return [f"its tensors were not checked: {'; '.join(error.problems)}"]
    bind_weights(decoder, checkpoint)
    return []


def _check_draft(recipe: Recipe, checkpoint: "Checkpoint") -> None:
    from coreai_recipes.decoder.draft import Draft
    from coreai_recipes.decoder.filling import bind_weights

    bind_weights(Draft.build(recipe), checkpoint)


def _base_of(src: str | Path) -> "tuple[Adapter | None, str | Path]":
    """The adapter in a folder and the checkpoint that it names, or no adapter and the source as it is."""
    from coreai_recipes.checkpoint.adapter import open_adapter
    from coreai_recipes.checkpoint.open import find_path

    folder = find_path(src)
    if not os.path.isfile(folder / CONFIG) or os.path.isfile(folder / "config.json"):
        return None, src
    adapter = open_adapter(src)
    if adapter.base is None:
        raise UserError(f"{adapter.place}: {CONFIG} names no base_model_name_or_path: give its base to `recipe new`")
    return adapter, adapter.base


def _open_base(adapter: "Adapter", src: str | Path) -> "Checkpoint":
    try:
        return open_config(src)
    except CheckpointError as error:
        where = f"  say in its {CONFIG} (base_model_name_or_path) where its base is"
        raise CheckpointError(
            *(f"{adapter.place}: its base, {problem}\n{where}" for problem in error.problems)
        ) from None


def _with_adapter(recipe: Recipe, adapter: "Adapter", checkpoint: "Checkpoint") -> Recipe:
    """Raises CheckpointError where the adapter does not fit the base's headers."""
    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint
    from coreai_recipes.recipe.schema import Adapter as Said

    if checkpoint.tensors:
        AdaptedCheckpoint(checkpoint, [(adapter, 1.0)])
    name = _name_of(adapter.path.resolve().name)
    return recipe.model_copy(update={"adapters": [Said(name=name, source=str(adapter.path))]})


def _name_after(checkpoint: "Checkpoint", source: str | None) -> str:
    """What the bundle's folder is to be called: the last part of the hub id or the folder's name, in small letters."""
    last = (source or checkpoint.path.resolve().name).partition("@")[0].rpartition("/")[2].lower()
    for suffix in (".gguf", ".safetensors"):
        last = last.removesuffix(suffix)
    return _name_of(last)


def _name_of(last: str) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("._-")
    return name[:100] or "model"


def _notes(imported: Imported) -> dict[str, str]:
    """Comments behind the lines on which something was decided."""
    longest, context = imported.longest, imported.recipe.export.context
    return {"context": f"of the {longest} that it was trained for"} if longest and longest != context else {}


def _decisions(imported: Imported, source: str | None, chosen: str | None) -> list[str]:
    recipe = imported.recipe
    said = [f"name: {recipe.name}, after the checkpoint"]
    if source is None:
        said.append("reference.checkpoint: left out, because a folder is only on this machine: pass --checkpoint SRC")
    room = f" of the {imported.longest} that it was trained for" if imported.longest else ""
    said.append(f"export.context: {recipe.export.context} positions{room}")
    if recipe.export.residual_scale == "auto":
        said.append("export.residual_scale: auto, what a verified build measures that float16 and the engine need")
    if recipe.draft is not None:
        said.append(f"export.functions.score: {recipe.export.functions.score}, for the last token and the drafted ones")
    if chosen:
        said.append(
            f"reference.model_type: {chosen}, because of --as: verify compares with transformers' {chosen}, and says so"
        )
    said += imported.notes
    said.append("everything else comes from config.json, or from transformers' defaults where config.json has none")
    return said


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 110)


def write_new(path: Path, new: NewRecipe) -> None:
    """Write the text; UserError when something is there already, or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(new.text)
    except FileExistsError:
        raise UserError(f"{path}: already exists; choose another name with -o") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from None


def family_rows() -> list[dict[str, Any]]:
    """The families that a config.json can be of, with the built-in recipes of each and what it was verified with."""
    from coreai_recipes.recipe.catalogue import list_recipes
    from coreai_recipes.recipe.importing.family import compared_as, family_names, load_family, verified_families

    built_in: dict[str, list[str]] = {}
    for entry in list_recipes():
        built_in.setdefault(entry.family or "", []).append(entry.name)
    return [
        {
            "family": name,
            "about": load_family(name).about,
            "recipes": built_in.get(name, []),
            "verified": verified_families().get(compared_as(name)),
        }
        for name in family_names()
    ]
