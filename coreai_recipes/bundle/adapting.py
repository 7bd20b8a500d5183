"""The adapters that a recipe names, found: merged into its checkpoint, or beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from coreai_recipes.bundle.origin import Held
from coreai_recipes.errors import CheckpointError, UserError
from coreai_recipes.manifest.schema import AdapterOrigin
from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.adapted import Unmerged
    from coreai_recipes.checkpoint.adapter import Adapter
    from coreai_recipes.checkpoint.base import Checkpoint


def with_adapters(recipe: Recipe, source: "Checkpoint", given: Mapping[str, str] | None = None) -> "Checkpoint":
    """The checkpoint with the adapters merged into it that the recipe merges; as it is where there are none.

    `given` says by name where an adapter lies, instead of the recipe. Raises CheckpointError for one that is none, or
    of another model.
    """
    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint
    from coreai_recipes.checkpoint.adapter import open_adapter

    check_given(recipe, given)
    if not recipe.merged or isinstance(source, AdaptedCheckpoint):
        return source
    places = given or {}
    opened = [(open_adapter(places.get(each.name, each.source)), each.scale) for each in recipe.merged]
    return AdaptedCheckpoint(source, opened)


def open_unmerged(
    recipe: Recipe, source: "Checkpoint", given: Mapping[str, str] | None = None
) -> "dict[str, Unmerged]":
    """The adapters by name that the recipe does not merge, opened beside its checkpoint. Raises as `with_adapters`."""
    from coreai_recipes.checkpoint.adapted import Unmerged
    from coreai_recipes.checkpoint.adapter import open_adapter

    places = given or {}
    return {
        each.name: Unmerged(source, open_adapter(places.get(each.name, each.source)), each.scale)
        for each in recipe.unmerged
    }


def check_given(recipe: Recipe, given: Mapping[str, str] | None) -> None:
    """Raise UserError for a name that no adapter of the recipe has."""
    names = [each.name for each in recipe.adapters or ()]
    there = f"it has {', '.join(names)}" if names else "it has none"
    UserError.collect(
        f"--adapter {name}: {recipe.name} has no such adapter: {there}" for name in given or {} if name not in names
    )


def sealed_recipe(recipe: Recipe, source: "Checkpoint", beside: "Mapping[str, Unmerged]") -> Recipe:
    """The recipe as a bundle holds it: adapters by what is the same everywhere, not by where they lie. `beside` are
    those that are not merged."""
    opened = _opened(recipe, source, beside)
    if not opened:
        return recipe
    named = [said.model_copy(update={"source": opened[said.name].source}) for said in recipe.adapters or ()]
    return recipe.model_copy(update={"adapters": named})


def origins_of(
    recipe: Recipe, source: "Checkpoint", beside: "Mapping[str, Unmerged]"
) -> list[dict[str, object]] | None:
    """What a manifest says of where the adapters came from."""
    opened = _opened(recipe, source, beside)
    found: list[dict[str, object]] = [
        {"name": name, "source": each.source, "sha256": each.digests()} for name, each in opened.items()
    ]
    return found or None


def _opened(recipe: Recipe, source: "Checkpoint", beside: "Mapping[str, Unmerged]") -> "dict[str, Adapter]":
    """The adapters of the recipe by name, in its order."""
    from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint

    merged = [each for each, _ in source.adapters] if isinstance(source, AdaptedCheckpoint) else []
    found = dict(zip((each.name for each in recipe.merged), merged, strict=False))
    found |= {name: each.adapter for name, each in beside.items()}
    return {each.name: found[each.name] for each in recipe.adapters or () if each.name in found}


def hold_adapters(
    held: Held, recipe: Recipe, built: str, origins: Sequence[AdapterOrigin] | None, given: Mapping[str, str] | None
) -> Held:
    """A bundle's checkpoint with the adapters that were merged into it, or why there is none: a folder is only known by
    its base name. Raises CheckpointError for an adapter that is another one."""
    check_given(recipe, given)
    merged = {each.name for each in recipe.merged}
    found = [each for each in origins or () if each.name in merged]
    if held.source is None or not found:
        return held
    places, why = find_places(found, built, given)
    return Held(reason=why) if why else replace(held, source=with_adapters(recipe, held.source, places))


def hold_unmerged(
    held: Held, recipe: Recipe, built: str, origins: Sequence[AdapterOrigin] | None, given: Mapping[str, str] | None
) -> "tuple[dict[str, Unmerged], str | None]":
    """The adapters beside a bundle's checkpoint, by name, or why there are none. Raises as `hold_adapters`."""
    unmerged = {each.name for each in recipe.unmerged}
    if held.source is None or not unmerged:
        return {}, held.reason
    places, why = find_places([each for each in origins or () if each.name in unmerged], built, given)
    return ({}, why) if why else (open_unmerged(recipe, held.source, places), None)


def find_places(
    origins: Sequence[AdapterOrigin], built: str, given: Mapping[str, str] | None
) -> tuple[dict[str, str], str | None]:
    """Where the adapters of a bundle lie, by name, or why that is not known of one. Raises CheckpointError for an
    adapter that is another one than that of the build."""
    from coreai_recipes.checkpoint.adapter import open_adapter
    from coreai_recipes.checkpoint.open import HUB_ID

    places = dict(given or {})
    for origin in origins:
        match = HUB_ID.fullmatch(origin.source)
        if origin.name in places or (match is not None and match["revision"] is not None):
            places.setdefault(origin.name, origin.source)
            continue
        where = f"pass it with --adapter {origin.name}=SRC"
        return {}, f"{built} was built with the adapter {origin.source}, which is not on the hub: {where}"
    for origin in origins:
        found = open_adapter(places[origin.name])
        other = next((file for file, digest in found.digests().items() if origin.sha256.get(file) != digest), None)
        if other is not None:
            raise CheckpointError(
                f"{found.place}: this is not the adapter {origin.name} that {built} was built with: {other}"
            )
    return places, None
