"""Adapters that are not merged, as a bundle has them: what their inputs must hold, and a file of float16 for each."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.errors import CheckpointError
from coreai_recipes.manifest.reading import file_of_adapter
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import LowRank

if TYPE_CHECKING:
    from coreai_recipes.bundle.packaging import Composed
    from coreai_recipes.checkpoint.adapted import Unmerged
    from coreai_recipes.checkpoint.base import Checkpoint
    from coreai_recipes.weights.low_rank import LowRankBinding


def with_low_rank(recipe: Recipe, source: "Checkpoint", beside: "Mapping[str, Unmerged]") -> Recipe:
    """The recipe with an `export.low_rank` that holds the adapters `beside` its checkpoint, where it says none.

    Raises CheckpointError where an adapter is no part of the model or more than `export.low_rank` says, RecipeError
    where that names no matrix of the model.
    """
    if not beside:
        return recipe
    from coreai_recipes.decoder.filling import bind_weights
    from coreai_recipes.decoder.low_rank import low_rank_specs, matrices_of_layers
    from coreai_recipes.decoder.model import build_decoder
    from coreai_recipes.weights.low_rank import bind_low_rank

    low_rank_specs(recipe)  # whose names are held against the model first
    bindings, matrices = bind_weights(build_decoder(recipe), source), matrices_of_layers(recipe)
    found = {name: bind_low_rank(bindings, each.alone, matrices) for name, each in beside.items()}
    said = recipe.export.low_rank
    if said is None:
        changed = {matrices[name] for of_adapter in found.values() for name in of_adapter}
        needed = LowRank(
            rank=max(each.rank for of_adapter in found.values() for each in of_adapter.values()),
            matrices=[name for name in dict.fromkeys(matrices.values()) if name in changed],
        )
        return recipe.model_copy(update={"export": recipe.export.model_copy(update={"low_rank": needed})})
    CheckpointError.collect(
        f"{beside[name].adapter.place}: {problem}"
        for name, of_adapter in found.items()
        for problem in dict.fromkeys(_beyond(said, of_adapter, matrices))
    )
    return recipe


def _beyond(said: LowRank, of_adapter: "Mapping[str, LowRankBinding]", matrices: Mapping[str, str]) -> Iterator[str]:
    """What of an adapter does not go into the inputs that a recipe says."""
    for name, each in of_adapter.items():
        if matrices[name] not in said.matrices:
            yield f"changes {matrices[name]}, which is not among export.low_rank.matrices"
        if each.rank > said.rank:
            yield f"has rank {each.rank}, and export.low_rank.rank is {said.rank}"


def write_adapters(composed: "Composed", beside: "Mapping[str, Unmerged]", folder: Path) -> None:
    """Write the values of each adapter's inputs as the manifest says. Raises CheckpointError for what float16 cannot
    hold."""
    if not beside:
        return
    from coreai_recipes.decoder.low_rank import input_values, matrices_of_layers
    from coreai_recipes.storage.chunks import low_rank_of_packages
    from coreai_recipes.storage.float16 import to_float16
    from coreai_recipes.weights.low_rank import bind_low_rank

    specs, matrices = low_rank_of_packages(composed.recipe), matrices_of_layers(composed.recipe)
    for name, each in beside.items():
        file = folder / file_of_adapter(name)
        file.parent.mkdir(exist_ok=True)
        factors = {at: found.read() for at, found in bind_low_rank(composed.bindings, each.alone, matrices).items()}
        with file.open("wb") as out:
            for values in input_values(specs, factors).values():
                out.write(to_float16(values, each.adapter.place).numpy().tobytes())
