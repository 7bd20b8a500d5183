"""What an audit's ranges ask for of a scale inside a part of the decoder."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from coreai_recipes.audit.ranges import Ranges
from coreai_recipes.recipe import Recipe
from coreai_recipes.verification.scale import Inside


@dataclass(frozen=True)
class InsideFound:
    """A scale inside a part: as it is, as the ranges want it, and why it cannot be that. `names` are the values that
    grow with it, by function, `largest` the largest of them."""

    inside: Inside
    now: float
    wanted: float
    largest: float
    why_not: str | None
    names: Mapping[str, Collection[str]]

    @classmethod
    def of(cls, inside: Inside, recipe: Recipe, ranges: Ranges) -> "InsideFound":
        room = {function: inside.values(recipe, graph) for function, graph in ranges.graphs.items()}
        sizes = {
            (function, name): ranges.found[function][name].largest
            for function, names in room.items()
            for name in names
            if name in ranges.found[function]
        }
        fitting = inside.choose(recipe, max((size / room[f][n] for (f, n), size in sizes.items()), default=0.0))
        why, now = inside.why_not(recipe), inside.now(recipe)
        return cls(inside, now, now if why else fitting, max(sizes.values(), default=0.0), why, room)

    @property
    def is_asked_for(self) -> bool:
        return self.wanted != self.now

    def __str__(self) -> str:
        found = f"{self.largest:,.0f} is the largest value {self.inside.where}"
        return f"{self.inside.key}: {self.wanted:g}, in place of {self.now:g}: {found}"

    def to_json(self) -> dict[str, Any]:
        largest = float(f"{self.largest:.6g}")
        return {"now": self.now, "wanted": self.wanted, "largest": largest, "why_not": self.why_not}
