"""A checkpoint of random weights in a recipe's shape: every tensor is made when it is read, and nothing is held.

So a recipe can be verified where its weights are not: the config is that of transformers' model of the family, the
names are those of the family's checkpoints, and no parameter is at its default.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.checkpoint.base import Checkpoint, TensorInfo
from coreai_recipes.decoder.filling import checkpoint_shapes
from coreai_recipes.decoder.model import build_decoder, count_parameters
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing import config_for
from coreai_recipes.recipe.schema import LayerKind, Model, Recipe, Repeat
from coreai_recipes.weights.names import HEADS, load_names

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_NUMBERS = 1 << 18
# A whole model of this many numbers is verified in about a minute on one core.
AFFORDABLE_NUMBERS = 120_000_000
# Rows that are kept of a table where it is cut: whole, it would be most of what is computed for a few layers.
AFFORDABLE_VOCABULARY = 8192
# Entries of a matrix are this over the root of its columns: scores then spread enough for attention to be peaked.
GAIN = 1.5


@dataclass(frozen=True)
class _Spread:
    """A tensor's values: `middle` + `width` * a normal number."""

    middle: float
    width: float


class RandomCheckpoint(Checkpoint):
    """Exactly the tensors that the recipe's decoder reads, float32, their values made of `seed` and their names; for a
    reference also those that its table ignores (`add_ignored`)."""

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        """Raises RecipeError when the recipe's family is not known, or cannot be what the recipe says."""
        self.source = f"random weights, seed {seed}"
        self.path = Path("random")
        self.config = config_for(recipe)
        self.seed = seed
        self._spreads: dict[str, _Spread] = {}
        self._ignored = load_names(recipe.weights.names).ignore
        self.tensors: dict[str, TensorInfo] = self._list_tensors(recipe)

    def add_ignored(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tensors that transformers' model has and the recipe's table ignores: an indexer's, where it chooses all."""
        for name, shape in shapes.items():
            is_ignored = name not in HEADS and any(fnmatchcase(name, pattern) for pattern in self._ignored)
            if is_ignored and name not in self.tensors:
                self.tensors[name] = TensorInfo(name, shape, "F32", "random")
                self._spreads[name] = _Spread(0.0, 0.2) if len(shape) < 2 else _Spread(0.0, GAIN * shape[-1] ** -0.5)

    @property
    def place(self) -> str:
        return self.source

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        shape = self.tensors[name].shape
        count = shape[0] if shape else 1
        wanted = range(count) if rows is None else rows
        step = max(1, BLOCK_NUMBERS // max(1, _numbers(shape[1:])))
        for start in range(wanted.start - wanted.start % step, wanted.stop, step):
            block = self._make(name, start // step, (min(step, count - start), *shape[1:]))
            first, last = max(wanted.start - start, 0), min(wanted.stop - start, len(block))
            if not shape:
                yield block[0]
            elif first < last:
                yield block[first:last]

    def eos_token_ids(self) -> list[int]:
        return []

    def write_tokenizer(self, folder: Path) -> None:
        raise CheckpointError(f"{self.place}: has no tokenizer")

    def _make(self, name: str, index: int, shape: tuple[int, ...]) -> Tensor:
        """Block `index` of a tensor: the same numbers whichever rows are asked for."""
        import torch

        digest = hashlib.sha256(f"{self.seed}/{name}/{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        spread = self._spreads[name]
        return torch.randn(shape, generator=generator).mul_(spread.width).add_(spread.middle)

    def _list_tensors(self, recipe: Recipe) -> dict[str, TensorInfo]:
        """The names of the recipe's table, read from our parameters to the family's tensors."""
        table = load_names(recipe.weights.names)
        shapes = checkpoint_shapes(build_decoder(recipe))
        found: dict[str, TensorInfo] = {}
        for name, shape in shapes.items():
            source = table.find(name, table.prefixes[0]) if table.knows(name) else None
            if source is None:
                continue  # `bind` says so
            if source.stack:
                each = source.stacked_shape(shape)
                for tensor in (tensor for parts in source.of_experts(shape[0]) for tensor in parts):
                    found[tensor] = TensorInfo(tensor, each, "F32", "random")
                    self._spreads[tensor] = _choose_spread(name, each, recipe.model)
                continue
            if source.join:
                rows, left = divmod(shape[0], len(source.join))
                for index, tensor in enumerate(source.join):
                    each = (rows + (left if index == 0 else 0), *shape[1:])
                    found[tensor] = TensorInfo(tensor, each, "F32", "random")
                    self._spreads[tensor] = _choose_spread(name, each, recipe.model)
                continue
            if source.parts:
                rows = sum(shapes[part][0] for part in source.parts if part in shapes)
                shape = (rows, *shape[1:])
            shape = source.stored_shape(shape)
            found[source.tensor] = TensorInfo(source.tensor, shape, "F32", "random")
            self._spreads[source.tensor] = _choose_spread(name, shape, recipe.model)
        for name, value in table.constants_of(len(recipe.model.layer_kinds), table.prefixes[0]).items():
            found[name] = TensorInfo(name, (), "F32", "random")
            self._spreads[name] = _Spread(value, 0.0)
        return found


def _choose_spread(name: str, shape: tuple[int, ...], model: Model) -> _Spread:
    owner, _, leaf = name.rpartition(".")
    if owner.endswith("norm") and leaf == "weight":
        return _Spread(0.0 if model.norm.weight == "1+w" else 1.0, 0.2)
    if "scal" in leaf:  # a layer's scalar, an expert's scale
        return _Spread(1.0, 0.1)
    return _Spread(0.0, 0.2) if len(shape) < 2 else _Spread(0.0, GAIN * shape[-1] ** -0.5)


def _numbers(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def cut_to_kinds(recipe: Recipe) -> Recipe:
    """The recipe with one layer of each kind, in the order of first use: every shape and mechanism, few layers."""
    names = list(dict.fromkeys(recipe.model.layer_kinds))
    layers: list[str | Repeat] = [*names]
    kinds: dict[str, LayerKind] = {name: recipe.model.kinds[name] for name in names}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"layers": layers, "kinds": kinds})})


def cut_vocabulary(recipe: Recipe, size: int) -> Recipe:
    """The recipe with tables of at most `size` rows."""
    model = recipe.model
    embedding, second = model.embedding, model.embedding.per_layer
    if second is not None:
        second = second.model_copy(update={"vocab_size": min(size, second.vocab_size)})
        embedding = embedding.model_copy(update={"per_layer": second})
    cut = {"vocab_size": min(size, model.vocab_size), "embedding": embedding}
    return recipe.model_copy(update={"model": model.model_copy(update=cut)})


def make_affordable(recipe: Recipe, vocabulary: int | None = None) -> tuple[Recipe, str]:
    """The recipe, or what of it can be verified in about a minute; and what that is, in words.

    Layers are cut, at full width; before them tables, where a `vocabulary` says to how many rows.
    """
    total = len(recipe.model.layer_kinds)
    words = ""
    if vocabulary is not None and _is_large(recipe) and vocabulary < recipe.model.vocab_size:
        words = f", {vocabulary:,} of {recipe.model.vocab_size:,} tokens"
        recipe = cut_vocabulary(recipe, vocabulary)
    if not _is_large(recipe):
        return recipe, f"all {total} layers{words}"
    cut = cut_to_kinds(recipe)
    return cut, f"one layer of each kind at full width, {len(cut.model.layer_kinds)} of {total}{words}"


def _is_large(recipe: Recipe) -> bool:
    return count_parameters(recipe) > AFFORDABLE_NUMBERS
