"""What holds the values of a mixture of experts together."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.plain import Location, Problem, integer_at, mapping_at, value_at


def expert_problems(kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    for block in ("experts", "mlp", "attention"):
        count, router = integer_at(kind, block, "num_experts"), mapping_at(kind, block, "router")
        at: Location = (*kind_at, block, "router")
        yield from _sparsemixer_problems(at, router)
        if block == "attention" and router.get("weighs", "output") != "output":
            words = "queries that are weighed would weigh scores: heads are weighed by what they give"
            yield Problem((*at, "weighs"), "heads-weighed", words, "remove it")
        if count and value_at(kind, block, "gated") is False:
            for name in ("clamp", "bias"):
                if value_at(kind, block, name):
                    yield Problem((*kind_at, block, name), "experts-plain", f"experts without a gate have no {name}")
        top, groups, top_groups = (integer_at(router, name) for name in ("top", "groups", "top_groups"))
        if count and top and top > count:
            yield Problem((*at, "top"), "experts-top", f"{top} of {count} experts cannot be chosen")
            continue
        if groups and top_groups and top_groups > groups:
            yield Problem(
                (*at, "top_groups"), "experts-top-groups", f"{top_groups} of {groups} groups cannot be chosen"
            )
            continue
        if not count or not groups or groups == 1 or min(count, groups) < 1:
            continue
        if count % groups:
            yield Problem((*at, "groups"), "experts-groups", f"{count} experts cannot be divided among {groups} groups")
        elif count // groups < 2:
            yield Problem((*at, "groups"), "experts-group-of-one", "a group of one expert has no two best scores")
        elif top and top_groups and top > count // groups * top_groups:
            within = count // groups * top_groups
            yield Problem(
                (*at, "top"), "experts-top", f"{top} experts cannot be chosen from the {within} of {top_groups} groups"
            )


def _sparsemixer_problems(at: Location, router: Mapping[str, Any]) -> Iterator[Problem]:
    """Only sparsemixer has a width, and its weights are what it makes them."""
    mixes = router.get("score") == "sparsemixer"
    if mixes != (router.get("jitter") is not None):
        words = "sparsemixer needs jitter" if mixes else "jitter is sparsemixer's"
        yield Problem((*at, "score"), "sparsemixer-jitter", f"{words}, and there is {'none' if mixes else 'another'}")
    others = {"bias": "none", "renorm": False, "groups": 1}
    for name in (name for name, usual in others.items() if mixes and router.get(name, usual) != usual):
        yield Problem((*at, name), "sparsemixer-alone", f"sparsemixer has no {name}", "remove it")


def mixture_problems(recipe: Mapping[str, Any], kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """Experts beside an MLP are joined with it behind norms of their own, which a sandwich alone has."""
    placement = kind.get("placement") or value_at(recipe, str(kind_at[0]), "placement")
    if mapping_at(kind, "experts") and placement != "sandwich":
        yield Problem(
            (*kind_at, "experts"),
            "experts-placement",
            f"experts beside an MLP need `placement: sandwich`, and this is `{placement or 'pre'}`",
            "write `placement: sandwich`, or experts in place of the MLP: `mlp: {kind: moe, ...}`",
        )
