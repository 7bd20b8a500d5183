"""What a layer of one half has: attention, or what stands in its place, without an MLP; an MLP without attention."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.plain import Location, Problem, mapping_at, value_at


def half_layer_problems(recipe: Mapping[str, Any], at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a kind, at `at` in a recipe, that lacks a half."""
    yield from _ending_problems(recipe, at, kind)
    yield from _beginning_problems(recipe, at, kind)


def _ending_problems(recipe: Mapping[str, Any], at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """A layer that ends behind attention has nothing beside an MLP, and no norm behind one."""
    if value_at(kind, "mlp", "kind") != "none":
        return
    placement = value_at(kind, "placement") or value_at(recipe, str(at[0]), "placement") or "pre"
    if placement != "pre":
        yield Problem(
            (*at, "mlp", "kind"), "mlp-none", f"no MLP, and the placement {placement}", "write `placement: pre`"
        )
    for name, there in (
        ("experts", kind),
        ("laurel_rank", mapping_at(recipe, str(at[0]))),
        ("altup", mapping_at(recipe, str(at[0]))),
    ):
        if there.get(name) is not None:
            yield Problem((*at, "mlp", "kind"), "mlp-none", f"no MLP, and {name}, which stands beside one")


def _beginning_problems(recipe: Mapping[str, Any], at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """A layer without attention is an MLP behind a norm, and nothing beside it."""
    if value_at(kind, "attention", "kind") != "none":
        return
    place, stack = (*at, "attention", "kind"), str(at[0])
    placement = value_at(kind, "placement") or value_at(recipe, stack, "placement") or "pre"
    if placement != "pre":
        yield Problem(place, "attention-none", f"no attention, and the placement {placement}", "write `placement: pre`")
    if value_at(kind, "mlp", "kind") == "none":
        yield Problem(place, "attention-none", "no attention, and no MLP: such a layer does nothing", "leave it out")
    for name, there in (
        ("experts", kind),
        ("laurel_rank", mapping_at(recipe, stack)),
        ("altup", mapping_at(recipe, stack)),
    ):
        if there.get(name) is not None:
            yield Problem(place, "attention-none", f"no attention, and {name}, which stands behind one")
