"""What functions take of adapters that are not merged: for each matrix of a kind, A and B of all its layers.

    y = W x + B A x        A (rank, in), B (out, rank) with the adapter's scale

An input for each matrix of each layer would be hundreds. B is transposed: ranks are few, and on a last axis they would
be padded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from coreai_recipes.errors import RecipeError
from coreai_recipes.primitives.layer import Layer
from coreai_recipes.primitives.projection import Factors, Projection
from coreai_recipes.recipe.schema import Recipe

Pair = tuple[Tensor, Tensor]
WHOLE = slice(None)
SIDES = ("a", "b")


@dataclass(frozen=True)
class LowRankSpec:
    """A and B of one `matrix`, as `attention.q`, of the `layers` of a kind, by their numbers in the model. The names of
    its inputs end with `behind`."""

    kind: str
    matrix: str
    layers: tuple[int, ...]
    rank: int
    in_channels: int
    out_channels: int
    behind: str = ""

    def port(self, side: str) -> str:
        """What a layer calls it."""
        return low_rank_port(side, self.matrix)

    def input(self, side: str) -> str:
        """What functions call it."""
        return f"lora_{side}_{self.kind}_{self.matrix.replace('.', '_')}{self.behind}"

    def shape(self, side: str) -> tuple[int, int, int]:
        """(layers, rank, in) of A, (layers, rank, out) of B."""
        return len(self.layers), self.rank, self.in_channels if side == "a" else self.out_channels

    @property
    def inputs(self) -> dict[str, tuple[int, int, int]]:
        """The shapes of its two inputs, by name."""
        return {self.input(side): self.shape(side) for side in SIDES}

    @cached_property
    def bytes(self) -> int:
        """Of both, in float16."""
        return 2 * sum(map(prod, self.inputs.values()))


def low_rank_port(side: str, matrix: str) -> str:
    """What a layer calls A or B of one of its matrices."""
    return f"lora_{side}_{matrix.replace('.', '_')}"


def low_rank_specs(recipe: Recipe, part: slice = WHOLE, behind: str = "") -> tuple[LowRankSpec, ...]:
    """The products beside the matrices that `export.low_rank` names, of all layers or of a `part` of them, in the order
    of kinds; none where it is not there. Raises RecipeError for a matrix that no layer has."""
    said = recipe.export.low_rank
    if said is None:
        return ()
    kinds = recipe.model.layer_kinds
    channels = {kind: dict(_matrices_of(recipe, kind)) for kind in dict.fromkeys(kinds)}
    known = dict.fromkeys(name for of_kind in channels.values() for name in of_kind)
    RecipeError.collect(
        f"{recipe.name}: export.low_rank: no layer has a matrix {name}: there are {', '.join(known)}"
        for name in said.matrices
        if name not in known
    )
    layers = range(len(kinds))[part]
    return tuple(
        LowRankSpec(
            kind,
            name,
            tuple(layer for layer in layers if kinds[layer] == kind),
            said.rank,
            *channels[kind][name],
            behind,
        )
        for kind in dict.fromkeys(kinds[part])
        for name in said.matrices
        if name in channels[kind]
    )


def matrices_of_layers(recipe: Recipe) -> dict[str, str]:
    """Every matrix beside which a product may stand, as `layers.0.attention.q`, and its name within the layer."""
    kinds = recipe.model.layer_kinds
    names = {kind: [name for name, _ in _matrices_of(recipe, kind)] for kind in dict.fromkeys(kinds)}
    return {f"layers.{index}.{name}": name for index, kind in enumerate(kinds) for name in names[kind]}


def _matrices_of(recipe: Recipe, kind: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """The projections of a layer by name, with what they take and give."""
    model = recipe.model
    with torch.device("meta"):
        layer = Layer(model, kind, model.embedding.per_layer, altup=model.altup, laurel_rank=model.laurel_rank)
    for name, module in layer.named_modules():
        if type(module) is Projection:
            yield name, (module.weight.shape[1], module.weight.shape[0])


def input_values(specs: Sequence[LowRankSpec], factors: Mapping[str, Pair]) -> dict[str, Tensor]:
    """Inputs by name, of the `factors` A (r, in) and B (out, r) of matrices as `layers.0.attention.q`, float32.
    Where a matrix has none, and ranks that it lacks, are zeros."""
    found = {name: torch.zeros(shape) for spec in specs for name, shape in spec.inputs.items()}
    for spec in specs:
        for place, layer in enumerate(spec.layers):
            pair = factors.get(f"layers.{layer}.{spec.matrix}")
            if pair is not None:
                a, b = pair
                found[spec.input("a")][place, : len(a)] = a
                found[spec.input("b")][place, : len(a)] = b.t()
    return found


def as_stored(factors: Mapping[str, Pair]) -> dict[str, Pair]:
    """The factors as a bundle has them, rounded to float16."""
    return {matrix: (a.half().float(), b.half().float()) for matrix, (a, b) in factors.items()}


def beside_matrices(factors: Mapping[str, Pair], prefix: str = "") -> dict[str, Factors]:
    """What `with_low_rank` takes of those factors whose matrices are in a module, by their names below `prefix`."""
    own = {name.removeprefix(prefix): pair for name, pair in factors.items() if name.startswith(prefix)}
    return {name: (a.unsqueeze(0), b.t().unsqueeze(0)) for name, (a, b) in own.items()}
