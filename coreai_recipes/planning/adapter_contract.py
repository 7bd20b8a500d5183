"""What a bundle says of the adapters that its functions take as inputs, given its recipe."""

from math import prod
from typing import Any

from coreai_recipes.decoder.low_rank import SIDES
from coreai_recipes.manifest.reading import file_of_adapter
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.chunks import low_rank_of_packages


def adapters_in_manifest(recipe: Recipe) -> dict[str, Any] | None:
    """What a manifest says of adapters that are not merged; None where functions take none."""
    specs = low_rank_of_packages(recipe)
    if not specs:
        return None
    inputs, offset = dict[str, Any](), 0
    for spec in specs:
        for side in SIDES:
            inputs[spec.input(side)] = {
                "dtype": "float16",
                "shape": list(spec.shape(side)),
                "role": side,
                "kind": spec.kind,
                "matrix": spec.matrix,
                "layers": list(spec.layers),
                "offset": offset,
            }
            offset += 2 * prod(spec.shape(side))
    return {"inputs": inputs, "files": {each.name: file_of_adapter(each.name) for each in recipe.unmerged}}
