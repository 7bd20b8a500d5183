"""Weights as a package gives them back, for the modules that it is compared with: rounded, or decompressed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.draft import ORDERING, build_draft
from coreai_recipes.decoder.filling import Weight, bind_decoder, bind_draft
from coreai_recipes.decoder.model import build_decoder, exported_form
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.base import Shape, Storage, join_rows
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.parameters import raw_tables, stored_draft_shape, stored_parameters
from coreai_recipes.weights.binding import Binding, join_blocks

ROWS = 512  # of a block that is given back at once


@dataclass(frozen=True)
class StoredWeight:
    """A parameter of `shape` in a package, in the order and with the factor of the exported form, both undone again."""

    binding: Binding
    shape: Shape
    storage: Storage

    @property
    def tensor(self) -> str:
        return self.binding.tensor

    def blocks(self) -> Iterator[Tensor]:
        # whole heads, for their order to be undone
        together = lcm(self.storage.together(self.shape), len(self.binding.rewrite.row_order or (0,)))
        yield from map(self._given_back, self._wholes(together))

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of the parameter as it is to be stored, and the same as a package has them; float32."""
        for block in self._wholes(self.storage.together(self.shape)):
            yield block, self._as_stored(block)

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


def stored_decoder(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Weight]:
    """The parameters of the recipe's Decoder, in the reference's own form."""
    decoder = build_decoder(recipe, exported_form(recipe))
    shapes = {**stored_parameters(decoder).shapes, **raw_tables(decoder).shapes}
    return _as_stored(recipe, bind_decoder(decoder, checkpoint), shapes)


def stored_draft(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Weight]:
    """As `stored_decoder`, for the recipe's draft."""
    draft = build_draft(recipe, exported_form(recipe))
    shapes = {name: stored_draft_shape(draft, name) for name, _ in draft.named_parameters()}
    return _as_stored(recipe, bind_draft(draft, checkpoint), shapes, "draft.")


def _as_stored(
    recipe: Recipe, bindings: Mapping[str, Binding], shapes: Mapping[str, Shape], prefix: str = ""
) -> dict[str, Weight]:
    """`prefix` is what stands before their names in a package, by which a recipe's rules know them."""
    compression = Compression.of(recipe)
    return {
        name: binding
        if name.endswith(ORDERING)
        else StoredWeight(binding, shapes[name], compression.storage(prefix + name, shapes[name]))
        for name, binding in bindings.items()
    }
