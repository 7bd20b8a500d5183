"""Two models, field by field: what a recipe says and what its reference has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coreai_recipes.recipe.importing.paths import flatten
from coreai_recipes.recipe.schema import Draft, Model, Stack

# what is ours to choose, and leaves the function as it is
OURS = ("rotary.precision", "rotary.lossy", "experts.decode")
ABSENT = None


@dataclass(frozen=True)
class Difference:
    """One field that differs. `layers` are the indices that it is about, none for the model as a whole."""

    path: str
    one: Any
    other: Any
    layers: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """`model.hidden_size`, or `layers 0 to 3: attention.window`."""
        return f"{describe_indices(self.layers)}: {self.path}" if self.layers else f"model.{self.path}"


def compare_models(one: Stack, other: Stack) -> list[Difference]:
    """Every difference in what the two compute; names of kinds, and how layers are folded, are none."""
    found = list(_compare(describe_stack(one), describe_stack(other)))
    ones, others = describe_layers(one), describe_layers(other)
    if len(ones) != len(others):
        found.append(Difference("layers", f"{len(ones)} layers", f"{len(others)} layers"))
    by_field: dict[tuple[str, str, str], tuple[Any, Any, list[int]]] = {}
    for index, pair in enumerate(zip(ones, others, strict=False)):
        for difference in _compare(*pair):
            key = (difference.path, repr(difference.one), repr(difference.other))
            by_field.setdefault(key, (difference.one, difference.other, []))[2].append(index)
    found += [Difference(path, a, b, tuple(layers)) for (path, _, _), (a, b, layers) in by_field.items()]
    return found


def describe_stack(model: Stack) -> dict[str, Any]:
    """What is said of the model as a whole, by path; a scale as its number."""
    data = model.model_dump(exclude={"kinds", "layers", "norm", "placement", "reference", "weights"}, exclude_none=True)
    if isinstance(model, Model):
        data["embedding"]["scale"] = model.embedding_scale
    return flatten({**data, "norm": model.norm.model_dump(exclude_none=True)})


def describe_layers(model: Stack) -> list[dict[str, Any]]:
    """What is said of each layer, by path, with what it takes from the model; a shared cache is its owner's index."""
    names = model.layer_kinds
    kinds = {}
    for name, kind in model.kinds.items():
        data = kind.model_dump(exclude_none=True)
        data["norm"], data["placement"] = model.norm_of(name).model_dump(), model.placement_of(name)
        scale, usual = kind.attention.score_scale, kind.attention.head_dim**-0.5
        data["attention"]["scale"] = "head_dim^-0.5" if scale == usual else scale
        kinds[name] = {path: value for path, value in flatten(data).items() if path not in OURS}
    found = []
    for name in names:
        owner = model.kinds[name].attention.shares_kv_with
        said = dict(kinds[name])
        if owner is not None and not isinstance(model, Draft):
            said["attention.shares_kv_with"] = max(i for i, other in enumerate(names) if other == owner)
        found.append(said)
    return found


def _compare(one: dict[str, Any], other: dict[str, Any]) -> Iterator[Difference]:
    for path in dict.fromkeys([*one, *other]):
        a, b = one.get(path, ABSENT), other.get(path, ABSENT)
        if (a, b) in ((ABSENT, False), (False, ABSENT)):
            continue  # what is not there is not so either
        if a != b or isinstance(a, bool) != isinstance(b, bool):
            yield Difference(path, a, b)


def describe_indices(layers: tuple[int, ...]) -> str:
    """`layer 3`, `layers 0 to 3`, `layers 3, 7, 11`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    shown = ", ".join(map(str, layers[:8]))
    return f"layers {shown}{f' and {len(layers) - 8} more' if len(layers) > 8 else ''}"
