"""The forms that a search chooses among."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from coreai_recipes.recipe.schema import StorageRule, StoredPalette
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.palette import Palette
from coreai_recipes.storage.shorthand import FEW_WEIGHTS, GROUP


@dataclass(frozen=True)
class Candidate:
    """`said` is what a recipe says of it; `storage` is None for float16."""

    said: dict[str, Any]
    storage: Storage | None

    @property
    def words(self) -> str:
        return f"{self.said['bits']} bits" if "bits" in self.said else str(self.said["kind"])


def _palette(bits: int) -> Candidate:
    said = StoredPalette(kind="palettize", bits=bits, group=GROUP)  # type: ignore[arg-type]
    return Candidate(said.model_dump(), Palette(said.bits, said.group))


CANDIDATES = (
    *(_palette(bits) for bits in (2, 3, 4, 6)),
    Candidate({"kind": "int8"}, Integers(8, None, True)),
    Candidate({"kind": "float16"}, None),
)


def candidates_for(shape: Shape) -> Iterator[tuple[int, Candidate]]:
    """Those of a matrix with their numbers: a small one may stay as it is, which costs next to nothing."""
    for number, form in enumerate(CANDIDATES):
        if form.storage is not None or prod(shape) < FEW_WEIGHTS:
            yield number, form


def rule_of(match: str, form: Candidate, default: Candidate) -> StorageRule:
    """A rule that says no more than differs from the default."""
    said = {key: value for key, value in form.said.items() if default.said.get(key) != value}
    if not said:  # what another rule changed, changed back
        said = {key: form.said[key] for key in ("bits",) if key in form.said} or {"kind": form.said["kind"]}
    return StorageRule.model_validate({"match": match, **said})
