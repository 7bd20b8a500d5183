"""Weights as a package has them, put into transformers' own model: each row in the place of that which it was made of.

No name is looked up: transformers finds its tensors as it does, and a row of what it reads is known again by its
values. So a package whose tensors are mixed up is seen, and bindings of ours that mix them up: this reference has not.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.decoder.filling import Weight
from coreai_recipes.weights.binding import Binding

SEED = 20240229
BLOCK_NUMBERS = 1 << 22
MATRIX = 2  # dimensions


class Exchange:
    """Called with a tensor that was read of a checkpoint: gives it, in float32, with every row that is one of
    `originals` replaced by the same row of `stored`, and a tensor without such rows as it is. Both hold matrices by
    name, with rows in the same order."""

    def __init__(self, originals: Mapping[str, Binding], stored: Mapping[str, Weight]) -> None:
        self._weights = list(stored.values())
        self._has_experts = [len(originals[name].shape) > MATRIX for name in stored]
        keys, places = [], []
        for number, name in enumerate(stored):
            row = 0
            for block in originals[name].blocks():
                keys.append(row_keys(block))
                places.append(np.stack([np.full(len(keys[-1]), number), np.arange(row, row + len(keys[-1]))]))
                row += len(keys[-1])
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._places = np.concatenate(places, 1)[:, first]

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.dim() < MATRIX:
            return tensor
        found = self._exchanged(tensor)
        if found is None:  # what one stores as rows is another's columns
            turned = self._exchanged(tensor.transpose(-1, -2).contiguous())
            found = None if turned is None else turned.transpose(-1, -2)
        return tensor if found is None else found

    def _exchanged(self, tensor: Tensor) -> Tensor | None:
        keys = row_keys(tensor)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = self._keys[at] == keys
        if not known.any():
            return None
        rows = tensor.float().reshape(len(keys), -1).clone()
        owners, numbers = self._places[:, at]
        for owner in np.unique(owners[known]):
            places = np.flatnonzero(known & (owners == owner))
            there, given = torch.from_numpy(places), self._rows(int(owner), numbers[places])
            if is_of(given, rows[there]):
                rows[there] = given
        return rows.reshape(tensor.shape)

    def _rows(self, owner: int, numbers: NDArray[np.int64]) -> Tensor:
        weight = self._weights[owner]
        first, last = int(numbers.min()), int(numbers.max())
        if self._has_experts[owner]:
            return weight.read().flatten(0, -2)[torch.from_numpy(numbers)].float()
        return weight.read_rows(range(first, last + 1)).float()[torch.from_numpy(numbers - first)]


def is_of(stored: Tensor, original: Tensor) -> bool:
    """Whether one can be the other, compressed: zeros would be further from it. Another matrix is twice as far."""
    return float((stored - original).square().sum()) <= float(original.square().sum())


def row_keys(tensor: Tensor) -> NDArray[np.int64]:
    """A number of each row (..., columns) that follows from its values in float32: other rows have, but for one chance
    in 2^64, another."""
    columns = tensor.shape[-1]
    factors = np.random.default_rng(SEED).integers(-(1 << 62), 1 << 62, columns, np.int64) | 1
    found = []
    for block in torch.split(tensor.reshape(-1, columns), max(1, BLOCK_NUMBERS // columns)):
        bits = block.float().contiguous().numpy().view(np.int32)
        found.append((bits.astype(np.int64) * factors).sum(1))  # wraps around
    return np.concatenate(found)
