"""The kinds of a stack's layers in order, from plain data that may be wrong elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from coreai_recipes.recipe.plain import value_at
from coreai_recipes.recipe.sizes import MAX_LAYERS


def expand_layers(layers: Sequence[Any]) -> Iterator[str]:
    """The kind of each layer: names as they stand, `{repeat, of}` unrolled; what is neither is passed over."""
    for entry in layers:
        if isinstance(entry, str):
            yield entry
            continue
        repeat = entry.get("repeat") if isinstance(entry, Mapping) else getattr(entry, "repeat", None)
        of = entry.get("of") if isinstance(entry, Mapping) else getattr(entry, "of", None)
        if isinstance(repeat, int) and isinstance(of, Sequence) and not isinstance(of, str):
            for _ in range(min(repeat, MAX_LAYERS)):
                yield from (name for name in of if isinstance(name, str))


def layer_order(recipe: Mapping[str, Any], stack: str) -> list[str]:
    """The kind of each layer, cut off behind the largest number that a recipe may have."""
    layers = value_at(recipe, stack, "layers")
    is_list = isinstance(layers, Sequence) and not isinstance(layers, str)
    return list(islice(expand_layers(layers), MAX_LAYERS + 1)) if is_list else []
