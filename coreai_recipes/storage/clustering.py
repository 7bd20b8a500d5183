"""The palette with the least squared error for each group of weights: k-means in one dimension, many groups at once.

On a line the clusters are runs of the sorted weights, and a programme over their ends finds the best ones. It runs over
some hundred cuts first, then over the single values about the ends that were found. Weights are float16 already: their
bits sort by counting, and what is equal is merged.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float16s = NDArray[np.float16]


def choose_entries(weights: Float16s, entries: int, importance: NDArray[np.float32] | None = None) -> Float16s:
    """The palette of each group: weights (groups, n) -> (groups, entries), rising; unused entries repeat another.

    `importance` is how much a squared error counts, not negative: (period,) for all groups or (groups, period), the
    same every `period` weights, which divides n. All alike without it, and where a group has none.
    """
    from coreai_recipes.storage.kernels import choose_palettes

    groups = len(weights)
    counted = np.ones((1, 1), np.float32) if importance is None else np.atleast_2d(importance)
    counted = np.where(counted.any(1, keepdims=True), counted, np.float32(1))
    counted = np.ascontiguousarray(np.broadcast_to(counted, (groups if len(counted) > 1 else 1, counted.shape[1])))
    found = np.empty((groups, entries))

    def choose(first: int, end: int) -> None:
        of_these = counted[first:end] if len(counted) > 1 else counted
        choose_palettes(_bits(weights[first:end]), of_these, _values_in_order(), found[first:end])

    _share_out(choose, groups)
    return found.astype(np.float16)


def nearest_entries(weights: Float16s, entries: Float16s) -> NDArray[np.uint8]:
    """The number of the entry nearest to each weight, the lower one where two are."""
    from coreai_recipes.storage.kernels import number_entries

    # float64 holds the sum of any two float16 values exactly
    middles = (entries[:, 1:].astype(np.float64) + entries[:, :-1]) / 2
    firsts = np.searchsorted(_values_in_order(), middles, side="right")
    numbers = np.empty(weights.shape, np.uint8)

    def number(first: int, end: int) -> None:
        number_entries(_bits(weights[first:end]), firsts[first:end], numbers[first:end])

    _share_out(number, len(weights))
    return numbers


@cache
def _values_in_order() -> NDArray[np.float32]:
    """All values of float16 in rising order, float32; NaN counts as an infinity."""
    keys = np.arange(1 << 16, dtype=np.uint16)
    values = np.where(keys < 1 << 15, ~keys, keys ^ np.uint16(1 << 15)).view(np.float16).astype(np.float32)
    values[np.isnan(values)] = np.inf
    values[: 1 << 10] = -np.inf
    return values


def _bits(weights: Float16s) -> NDArray[np.uint16]:
    return np.ascontiguousarray(weights).view(np.uint16)


def _share_out(work: Callable[[int, int], Any], groups: int) -> None:
    """Do `work` from a first group to an end, in as many threads as torch has."""
    import torch

    threads = min(torch.get_num_threads(), groups)
    if threads <= 1:
        work(0, groups)
        return
    bounds = [groups * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads, thread_name_prefix="groups") as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
