"""Weights as a package gives them back, for the modules that it is compared with: rounded, or decompressed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.binding import Binding, join_blocks
from coreai_recipes.draft import ORDERING, build_draft
from coreai_recipes.filling import Weight, bind_decoder, bind_draft
from coreai_recipes.model import build_decoder, exported_form
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.base import Storage
from coreai_recipes.storage.compression import Compression


@dataclass(frozen=True)
class StoredWeight:
    """A parameter that was stored in the order and with the factor of the exported form, both undone again."""

    binding: Binding
    storage: Storage

    @property
    def tensor(self) -> str:
        return self.binding.tensor

    def blocks(self) -> Iterator[Tensor]:
        for block in self.binding.blocks():
            yield self._given_back(block)

    def read(self) -> Tensor:
        return join_blocks(self.blocks(), self.binding.shape)

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        return self._given_back(self.binding.read_rows(rows))

    def _given_back(self, block: Tensor) -> Tensor:
        return self.binding.rewrite.unfold(self.storage.as_stored(block, self.binding.tensor))


def stored_decoder(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Weight]:
    """The parameters of the recipe's Decoder, in the reference's own form."""
    return _as_stored(recipe, bind_decoder(build_decoder(recipe, exported_form(recipe)), checkpoint))


def stored_draft(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Weight]:
    """As `stored_decoder`, for the recipe's draft."""
    return _as_stored(recipe, bind_draft(build_draft(recipe, exported_form(recipe)), checkpoint))


def _as_stored(recipe: Recipe, bindings: Mapping[str, Binding]) -> dict[str, Weight]:
    compression = Compression.of(recipe)
    return {
        name: binding if name.endswith(ORDERING) else StoredWeight(binding, compression.storage(name, binding.shape))
        for name, binding in bindings.items()
    }
