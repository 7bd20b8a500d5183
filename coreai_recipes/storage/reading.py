"""Weights as a package gives them back, for the modules that it is compared with: rounded, or decompressed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm, prod
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight, bind_weights
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.stacks import MODULES, build_stacks
from coreai_recipes.recipe.schema import MODEL, Recipe
from coreai_recipes.storage.base import Shape, Storage, join_rows
from coreai_recipes.storage.chunks import packed_parts
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.packed import PackedParts
from coreai_recipes.storage.parameters import stored_shape
from coreai_recipes.weights.binding import Binding, join_blocks

ROWS = 512  # of a block that is given back at once
BLOCK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class StoredWeight:
    """A parameter of `shape` in a package, in the order and with the factor of the exported form, both undone again."""

    binding: Binding
    shape: Shape
    storage: Storage

    @property
    def tensor(self) -> str:
        return self.binding.tensor

    def encoded(self) -> Iterator[NDArray[Any]]:
        """What an exporter writes of the checkpoint's numbers, part after part: a block is valid until the next."""
        return (values for _, values in self.storage.encode(self.binding.blocks(), self.shape, self.binding.tensor))

    def blocks(self) -> Iterator[Tensor]:
        # whole heads, for their order to be undone
        together = lcm(self.storage.together(self.shape), len(self.binding.rewrite.row_order or (0,)))
        yield from map(self._given_back, self._wholes(together))

    def _wholes(self, together: int) -> Iterator[Tensor]:
        """Blocks of so many rows that those are whole that are stored together; the last may have fewer."""
        if self.storage.together(self.shape) == 1:  # the binding's own blocks are of whole heads
            yield from (block.float() for block in self.binding.blocks())
            return
        step, rows = together * -(-ROWS // together), self.binding.shape[0]
        for block in join_rows((block.float().numpy() for block in self.binding.blocks()), step, rows):
            yield torch.from_numpy(block)

    def read(self) -> Tensor:
        return join_blocks(self.blocks(), self.binding.shape)

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        if self.binding.rewrite.row_order is not None:  # undone of whole heads, or of a whole MLP
            return self.read()[list(rows)]
        together = self.storage.together(self.shape)
        if together == 1:
            return self._given_back(self.binding.read_rows(rows))
        found = []
        for row in rows:
            first = row // together * together
            group = self.binding.read_rows(range(first, min(first + together, self.binding.shape[0])))
            found.append(self._given_back(group)[row - first : row - first + 1])
        return torch.cat(found)

    def _given_back(self, block: Tensor) -> Tensor:
        return self.binding.rewrite.unfold(self._as_stored(block))

    def _as_stored(self, block: Tensor) -> Tensor:
        """As a package has it, with the zeros that share a palette with the last rows."""
        missing = -len(block) % self.storage.together(self.shape)
        whole = torch.cat((block.float(), torch.zeros(missing, *block.shape[1:]))) if missing else block
        return self.storage.as_stored(whole, self.binding.tensor)[: len(block)]


@dataclass(frozen=True)
class PackedWeight(StoredWeight):
    """As they lie in weight.bin, where the recipe's layout says: which of them a program uses for what is its own
    affair, and a wrong one is seen. What lies there is near the checkpoint's numbers, or is another's (`pairs`)."""

    parts: PackedParts

    def blocks(self) -> Iterator[Tensor]:
        step = self.parts.step(len(self.binding.rewrite.row_order or (0,)))
        step *= max(1, BLOCK_WEIGHTS // (step * prod(self.shape[1:])))
        for first in range(0, self.binding.shape[0], step):
            yield self.binding.rewrite.unfold(self._rows(first, min(first + step, self.binding.shape[0])))

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        first = 0
        for block in self._wholes(self.parts.step()):
            yield block, self._rows(first, first + len(block))
            first += len(block)

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        if self.binding.rewrite.row_order is not None:
            return self.read()[list(rows)]
        return torch.cat([self.binding.rewrite.unfold(self._rows(row, row + 1)) for row in rows])

    def is_of_checkpoint(self) -> bool:
        """Whether its errors are smaller than its numbers: those of another tensor are, in squares, twice as large."""
        error = size = 0.0
        for one, other in self.pairs():
            error += float((one - other).double().square().sum())
            size += float(one.double().square().sum())
        return error <= size

    def _rows(self, first: int, end: int) -> Tensor:
        return self.parts.rows(first, end).reshape(end - first, *self.binding.shape[1:])


def stored_weights(
    recipe: Recipe, checkpoint: Checkpoint, key: str = MODEL, package: Path | None = None
) -> dict[str, Weight]:
    """The parameters of the recipe's stack `key`, in the reference's own form; those that were fitted to a text as they
    lie in the weight.bin of `package`, or of those beside it, where there is one."""
    compression, stack = Compression.of(recipe), MODULES[key].build(recipe, exported_form(recipe))
    stacks = build_stacks(recipe, exported_form(recipe))
    parts = packed_parts(stacks, package) if package is not None and compression.calibrated else {}
    found: dict[str, Weight] = {}
    for name, binding in bind_weights(stack, checkpoint).items():
        shape, packed = stored_shape(stack, name), stack.of.prefix + name
        storage = compression.storage(packed, shape)
        if name in stack.whole_numbers:
            found[name] = binding
        elif packed in parts and compression.is_calibrated(packed, shape):
            found[name] = PackedWeight(binding, shape, storage, parts[packed])
        else:
            found[name] = StoredWeight(binding, shape, storage)
    return found


def given_back(stacks: Sequence[StackModule], name: str, binding: Binding, package: Path) -> StoredWeight:
    """The parameter `name` of a model as its program has it, which is written at `package` when its blocks are asked
    for."""
    compression, shape = Compression.of(stacks[0].recipe), stored_shape(stacks[0], name)
    storage = compression.storage(name, shape)
    parts = packed_parts(stacks, package) if compression.is_calibrated(name, shape) else {}
    if name in parts:
        return PackedWeight(binding, shape, storage, parts[name])
    return StoredWeight(binding, shape, storage)
