"""The recipes that ship with the package, with what `recipe list` tells of each."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coreai_recipes.recipe.loader import load_recipe
from coreai_recipes.recipe.schema import Model, NoRotary, NTKScaling, Recipe, Rotary
from coreai_recipes.recipe.source import built_in_recipes
from coreai_recipes.recipe.yaml_reader import read_yaml

PARAMETERS = Path(__file__).with_name("parameters.yaml")


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue.

    Attributes:
        family: the model_type of the reference, None for an architecture without one.
        parameters: how many numbers the recipe takes of the checkpoint, a tied table counted once; None for a recipe
            that nobody has counted.
        kinds: how many layers there are of each kind, in the recipe's order.
        rotary: what turns in each kind, in words.
    """

    name: str
    path: Path
    family: str | None
    parameters: int | None
    kinds: dict[str, int]
    rotary: str


def list_recipes() -> list[Entry]:
    """Every built-in recipe, by family and then by size."""
    rows = [describe_recipe(load_recipe(path), path) for path in built_in_recipes().values()]
    return sorted(rows, key=lambda row: (row.family or "", row.parameters or 0))


def describe_recipe(recipe: Recipe, path: Path) -> Entry:
    """The row of one recipe."""
    layers = Counter(recipe.model.layer_kinds)
    return Entry(
        name=recipe.name,
        path=path,
        family=recipe.reference.model_type if recipe.reference else None,
        parameters=_parameters().get(recipe.name),
        kinds={kind: layers[kind] for kind in recipe.model.kinds},
        rotary=_summarize_rotary(recipe.model),
    )


@cache
def _parameters() -> dict[str, int]:
    """What `make schema` has counted on each built-in recipe's decoder: counting takes torch, which a list must not."""
    root, problems = read_yaml(PARAMETERS.read_bytes(), PARAMETERS.name)
    if root is None or problems:
        raise ValueError(f"{PARAMETERS} is not what `make schema` writes")
    counts: dict[str, int] = root.plain()
    return counts


def _summarize_rotary(model: Model) -> str:
    """`full`, or by kind where they differ: `sliding: full, full: proportional 0.25`."""
    words = {name: _describe_rotary(kind.rotary) for name, kind in model.kinds.items()}
    different = set(words.values())
    return different.pop() if len(different) == 1 else ", ".join(f"{name}: {word}" for name, word in words.items())


def _describe_rotary(rotary: Rotary) -> str:
    if isinstance(rotary, NoRotary):
        return rotary.kind
    factor = getattr(rotary, "factor", None)
    words = rotary.kind if factor is None else f"{rotary.kind} {factor:g}"
    if rotary.pairing == "interleaved":
        words += " interleaved"
    if rotary.scaling is None:
        return words
    by = rotary.scaling.alpha if isinstance(rotary.scaling, NTKScaling) else rotary.scaling.factor
    return f"{words} ({rotary.scaling.kind} x{by:g})"
