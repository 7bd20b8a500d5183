"""The adapters that a recipe names, found and merged into its checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from coreai_recipes.bundle.origin import Held
from coreai_recipes.errors import CheckpointError, UserError
from coreai_recipes.manifest.schema import AdapterOrigin
from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint


def with_adapters(recipe: Recipe, source: "Checkpoint", given: Mapping[str, str] | None = None) -> "Checkpoint":
    """The checkpoint with the adapters of the recipe merged into it; as it is where there are none.

    `given` says by name where an adapter lies, instead of the recipe. Raises CheckpointError for one that is none, or
    of another model.
    """
    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint
    from coreai_recipes.checkpoint.adapter import open_adapter

    check_given(recipe, given)
    if not recipe.adapters or isinstance(source, AdaptedCheckpoint):
        return source
    places = given or {}
    opened = [(open_adapter(places.get(each.name, each.source)), each.scale) for each in recipe.adapters]
    return AdaptedCheckpoint(source, opened)


def check_given(recipe: Recipe, given: Mapping[str, str] | None) -> None:
    """Raise UserError for a name that no adapter of the recipe has."""
    names = [each.name for each in recipe.adapters or ()]
    there = f"it has {', '.join(names)}" if names else "it has none"
    UserError.collect(
        f"--adapter {name}: {recipe.name} has no such adapter: {there}" for name in given or {} if name not in names
    )


def sealed_recipe(recipe: Recipe, source: "Checkpoint") -> Recipe:
    """The recipe as a bundle holds it: adapters by what is the same everywhere, not by where they lie."""
    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint

    if not isinstance(source, AdaptedCheckpoint):
        return recipe
    pairs = zip(recipe.adapters or (), source.adapters, strict=True)
    named = [said.model_copy(update={"source": opened.source}) for said, (opened, _) in pairs]
    return recipe.model_copy(update={"adapters": named})


def origins_of(recipe: Recipe, source: "Checkpoint") -> list[dict[str, object]] | None:
    """What a manifest says of the adapters."""
    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint

    if not isinstance(source, AdaptedCheckpoint):
        return None
    pairs = zip(recipe.adapters or (), source.adapters, strict=True)
    return [{"name": said.name, "source": each.source, "sha256": each.digests()} for said, (each, _) in pairs]


def hold_adapters(
    held: Held, recipe: Recipe, built: str, origins: Sequence[AdapterOrigin] | None, given: Mapping[str, str] | None
) -> Held:
    """A bundle's checkpoint with the adapters that it was built with, or why there is none: a folder is only known by
    its base name. Raises CheckpointError for an adapter that is another one."""
    from coreai_recipes.checkpoint.adapter import open_adapter
    from coreai_recipes.checkpoint.open import HUB_ID

    check_given(recipe, given)
    if held.source is None or not origins:
        return held
    places = dict(given or {})
    for origin in origins:
        match = HUB_ID.fullmatch(origin.source)
        if origin.name in places or (match is not None and match["revision"] is not None):
            places.setdefault(origin.name, origin.source)
            continue
        where = f"pass it with --adapter {origin.name}=SRC"
        return Held(reason=f"{built} was built with the adapter {origin.source}, which is not on the hub: {where}")
    for origin in origins:
        found = open_adapter(places[origin.name])
        other = next((file for file, digest in found.digests().items() if origin.sha256.get(file) != digest), None)
        if other is not None:
            raise CheckpointError(
                f"{found.place}: this is not the adapter {origin.name} that {built} was built with: {other}"
            )
    return replace(held, source=with_adapters(recipe, held.source, places))
