"""The weights of a saved package as its program decompresses them, in the order and scale of the reference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import bind_weights, flat_shapes
from coreai_recipes.decoder.model import build_decoder, exported_form
from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.constants import Constant
from coreai_recipes.evaluate.graph import read_graph
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.running.tables import Table
from coreai_recipes.storage.chunks import packages_of
from coreai_recipes.storage.parameters import TABLE_INPUTS
from coreai_recipes.verification.runtime import tables_beside
from coreai_recipes.weights.binding import join_blocks
from coreai_recipes.weights.folding import stored_as
from coreai_recipes.weights.rewrite import Rewrite

ROWS = 512  # of a block that is decompressed at once, of a parameter of more weights than
WHOLE = 1 << 25


@dataclass(frozen=True)
class PackagedWeight:
    """A parameter of `shape` as a constant of the program has it, its order and factor undone again."""

    tensor: str
    constant: Constant
    shape: tuple[int, ...]
    rewrite: Rewrite

    @property
    def _has_rows(self) -> bool:
        """Whether the constant's first axis is the parameter's: a vector lies along another one."""
        stored = self.constant.shape
        return len(self.shape) > 1 and prod(stored[1:]) == prod(self.shape[1:]) and stored[0] >= self.shape[0]

    def blocks(self) -> Iterator[Tensor]:
        if not self._has_rows or prod(self.shape) <= WHOLE:
            whole = self.constant.stored().float().reshape(-1)[: prod(self.shape)].reshape(self.shape)
            yield self.rewrite.unfold(whole)
            return
        heads = len(self.rewrite.row_order or (0,))  # whole ones, for their order to be undone
        step = heads * -(-ROWS // heads)
        for start in range(0, self.shape[0], step):
            yield self.rewrite.unfold(self._rows(range(start, min(start + step, self.shape[0]))))

    def read(self) -> Tensor:
        return join_blocks(self.blocks(), self.shape)

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        if self.rewrite.row_order is not None:  # undone of whole heads, or of a whole MLP
            return self.read()[list(rows)]
        return self.rewrite.unfold(self._rows(rows))

    def _rows(self, rows: Sequence[int]) -> Tensor:
        found = self.constant.rows(list(rows))
        if found is None:
            found = self.constant.stored()[list(rows)]
        return found.float().reshape(-1, *self.shape[1:])


@dataclass(frozen=True)
class RawTable:
    """A table that lies beside the package, for a host to look up its rows."""

    tensor: str
    table: Table
    shape: tuple[int, ...]

    def blocks(self) -> Iterator[Tensor]:
        for start in range(0, self.shape[0], ROWS):
            yield self.read_rows(range(start, min(start + ROWS, self.shape[0])))

    def read(self) -> Tensor:
        return join_blocks(self.blocks(), self.shape)

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.table.read(np.asarray(rows)).astype(np.float32))


def packaged_decoder(
    recipe: Recipe,
    package: Path,
    checkpoint: Checkpoint | None = None,
    constants: Mapping[str, Constant] | None = None,
) -> Mapping[str, PackagedWeight | RawTable]:
    """The parameters of the recipe's Decoder by name, as the package has them, or those beside it that the recipe asks
    for. Channels that `compress.regroup` has moved are where the `checkpoint` has them if it is given, else where the
    package has them, which is the same function. `constants` are the packages', where they were read before. Raises
    BundleError for a parameter that is not there."""
    decoder = build_decoder(recipe, exported_form(recipe))
    rewrites = {name: stored_as(recipe, name, decoder.form) for name, _ in decoder.named_parameters()}
    if checkpoint is not None and recipe.regroups:
        rewrites = {name: binding.rewrite for name, binding in bind_weights(decoder, checkpoint).items()}
    if constants is None:
        constants = {name: found for each in packages_of(recipe, package) for name, found in constants_of(each).items()}
    found: dict[str, PackagedWeight | RawTable] = {}
    missing = []
    tables = tables_beside(recipe, package)
    for name, shape in flat_shapes(decoder).items():
        constant = constants.get(name.replace(".", "_"))
        if name in decoder.tables or (constant is None and TABLE_INPUTS.get(name) in tables):
            found[name] = RawTable(name, tables[TABLE_INPUTS[name]], shape)
        elif constant is None or prod(constant.shape) < prod(shape):
            missing.append(f"{package}: holds no {name} of {shape}, which its recipe has")
        else:
            found[name] = PackagedWeight(name, constant, shape, rewrites[name])
    BundleError.collect(missing)
    return found


def constants_of(package: Path) -> dict[str, Constant]:
    """Those of all functions by name: what one does not compute, another may."""
    if package.suffix == ".aimodel":
        from coreai_recipes.running.asset_weights import constants_of as constants_of_asset

        return constants_of_asset(package)
    opened = Package(package)
    found: dict[str, Constant] = {}
    for function in opened.functions:
        found |= read_graph(opened, function).constants
    return found
