"""What relates a recipe's adapters to one another and to how its package is written, by plain data alone."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from coreai_recipes.recipe.plain import Location, Problem, value_at
from coreai_recipes.recipe.sizes import MAX_ADAPTERS, MAX_LOW_RANK

MEND = "leave out merge: false"


def adapter_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that two adapters have, and what cannot take the matrices of adapters as inputs."""
    found = value_at(recipe, "adapters")
    adapters = list(islice(found, MAX_ADAPTERS)) if isinstance(found, list | tuple) else []
    named = [value_at(each, "name") for each in adapters]
    for index, name in enumerate(named):
        earlier = [each.casefold() for each in named[:index] if isinstance(each, str)]  # they are files of a bundle
        if isinstance(name, str) and name.casefold() in earlier:
            yield Problem(("adapters", index, "name"), "adapter-name", f"{name} is the name of an earlier adapter too")
    unmerged = next((index for index, each in enumerate(adapters) if value_at(each, "merge") is False), None)
    is_asset = value_at(recipe, "export", "format") == "coreai"
    low_rank = None if is_asset else value_at(recipe, "export", "low_rank")  # no field of that format
    if unmerged is None and low_rank is None:
        return
    at: Location = ("export", "low_rank") if unmerged is None else ("adapters", unmerged, "merge")
    mend = "leave out export.low_rank" if unmerged is None else MEND
    if is_asset:
        yield Problem(at, "low-rank-format", "an .aimodel cannot take adapters as inputs yet", mend)
    if (host := value_at(recipe, "export", "host")) is not None:
        yield Problem(at, "low-rank-host", f"{host} hands in no adapters", mend)
    if recipe.get("draft") is not None:
        yield Problem(
            at, "low-rank-draft", "a draft guesses for the model that it was trained for, not for adapters", mend
        )
    names = value_at(low_rank, "matrices")
    for index, name in enumerate(islice(names, MAX_LOW_RANK) if isinstance(names, list | tuple) else ()):
        if name in names[:index]:
            where: Location = ("export", "low_rank", "matrices", index)
            yield Problem(where, "low-rank-twice", f"{name} is named twice", "remove one of them")
