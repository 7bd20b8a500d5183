"""Palettes fitted to what a text says of a matrix's inputs: weighted clusters, feedback, descent, entries once more."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.calibration.feedback import PASSES, feed_back
from coreai_recipes.calibration.kernels import choose_in_block, descend, sum_by_entry
from coreai_recipes.calibration.statistics import Statistics
from coreai_recipes.storage.clustering import choose_entries

RIDGE = 1e-4  # of the mean diagonal, towards the entries that are there: an unused one stays

Indices = NDArray[np.uint8]
Entries = NDArray[np.float16]


def fit_palettes(weights: Tensor, statistics: Statistics, entries: int, group: int) -> tuple[Indices, Entries]:
    """Indices (rows, I) and palettes (rows / group, entries) of whole groups of rows (rows, I), float32.

    Products are torch's, of buffers that torch has aligned: the same to the bit, as long as each is one thread's.
    """
    rows, width = weights.shape
    clustered = weights.half().numpy().reshape(-1, group * width)
    chosen = choose_entries(clustered, entries, statistics.importance.numpy())
    palettes = np.maximum.accumulate(chosen, 1).astype(np.float32)
    order, indices = statistics.order, torch.empty(rows, width, dtype=torch.uint8)

    def choose(first: int, own: Tensor, targets: Tensor, inside: Tensor, errors: Tensor) -> None:
        chosen = torch.empty(targets.shape, dtype=torch.uint8)
        choose_in_block(own.numpy(), targets.numpy(), inside.numpy(), palettes, group, chosen.numpy(), errors.numpy())
        indices[:, order[first : first + targets.shape[1]]] = chosen

    feed_back(weights[:, order], statistics.feedback, choose)
    found, hessian = indices.numpy(), statistics.shrunk
    values = torch.empty(rows, width)
    of_weights = torch.mm(weights, hessian)

    def improve() -> None:
        _look_up(palettes, found, values.numpy(), group)
        gradients = of_weights - torch.mm(values, hessian)
        descend(gradients.numpy(), hessian.numpy(), palettes, group, found, values.numpy(), PASSES)

    improve()
    palettes = _fit_again(of_weights, hessian, found, palettes, group)
    improve()
    return found, palettes.astype(np.float16)


def _look_up(palettes: NDArray[np.float32], indices: Indices, out: NDArray[np.float32], group: int) -> None:
    of_group = indices.reshape(len(palettes), -1)
    out.reshape(len(palettes), -1)[:] = np.take_along_axis(palettes, of_group.astype(np.intp), 1)


def _fit_again(
    of_weights: Tensor, hessian: Tensor, indices: Indices, palettes: NDArray[np.float32], group: int
) -> NDArray[np.float32]:
    """The entries with least error for these indices, rising; indices are renamed along."""
    groups, entries = palettes.shape
    matrices, vectors = np.zeros((groups, entries, entries)), np.zeros((groups, entries))
    sum_by_entry(of_weights.numpy(), hessian.numpy(), indices, group, matrices, vectors)
    left, right = torch.from_numpy(matrices), torch.from_numpy(vectors)
    ridge = RIDGE * left.diagonal(0, 1, 2).mean(1, keepdim=True)
    left.diagonal(0, 1, 2).add_(ridge)
    solved = torch.linalg.solve(left, right + ridge * torch.from_numpy(palettes).double()).numpy()
    order = np.argsort(solved, 1, kind="stable")
    names = np.argsort(order, 1).astype(np.uint8)
    of_group = indices.reshape(groups, -1)
    of_group[:] = np.take_along_axis(names, of_group.astype(np.intp), 1)
    return np.take_along_axis(solved, order, 1).astype(np.float16).astype(np.float32)
