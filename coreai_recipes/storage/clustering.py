"""The palette with the least squared error for each group of weights: k-means in one dimension, many groups at once.

On a line the clusters are runs of the sorted weights, so that their sums come from running sums. A programme over some
hundred cuts finds the runs (Wang and Song, Ckmeans.1d.dp, over cuts in place of weights), then Lloyd's steps move the
ends between cuts. Weights are float16 already: 16-bit keys in the order of their values sort by radix.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SIGN = np.uint16(0x8000)
MOST_STEPS = 100
EDGE = 12


def choose_entries(weights: NDArray[np.float16], entries: int) -> NDArray[np.float16]:
    """The palette of each group: weights (groups, n) -> (groups, entries), rising; unused entries repeat another."""
    ordered = sort_rows(weights).astype(np.float64)
    groups, count = ordered.shape
    sums = np.zeros((groups, count + 1))
    squares = np.zeros((groups, count + 1))
    np.cumsum(ordered, axis=1, out=sums[:, 1:])
    np.cumsum(ordered * ordered, axis=1, out=squares[:, 1:])
    if count <= entries:
        return np.concatenate((ordered, np.repeat(ordered[:, -1:], entries - count, 1)), 1).astype(np.float16)
    cuts = _cuts(ordered, entries)
    ends = _best_runs(cuts, sums, squares, entries)
    centres = _means(ends, sums, ordered)
    for _ in range(MOST_STEPS):
        middles = (centres[:, 1:] + centres[:, :-1]) / 2
        moved = _ends_at(ordered, middles)
        if np.array_equal(moved, ends):
            break
        ends = moved
        centres = _means(ends, sums, ordered)
    return np.maximum.accumulate(centres, 1).astype(np.float16)


def nearest_entries(weights: NDArray[np.float16], entries: NDArray[np.float16]) -> NDArray[np.uint8]:
    """The number of the entry nearest to each weight, the lower one where two are."""
    middles = (entries[:, 1:].astype(np.float32) + entries[:, :-1].astype(np.float32)) / 2
    values = weights.astype(np.float32)
    import torch

    # a middle is a sum of two float16 values, which float32 holds exactly
    found = torch.searchsorted(torch.from_numpy(middles), torch.from_numpy(values), out_int32=True)
    return found.to(torch.uint8).numpy()


def sort_rows(weights: NDArray[np.float16]) -> NDArray[np.float16]:
    """Each row in rising order."""
    bits = (weights + np.float16(0)).view(np.uint16)  # -0 becomes 0
    keys = np.where(bits & SIGN, ~bits, bits | SIGN)
    keys.sort(axis=1, kind="stable")
    return np.where(keys & SIGN, keys ^ SIGN, ~keys).view(np.float16)


def _cuts(ordered: Floats, entries: int) -> NDArray[np.int64]:
    """Places in the order (groups, cuts) where a run may end: spread over the weights and over their values, and every
    place at either end, where a few lie far from the others."""
    groups, count = ordered.shape
    spread = np.round(np.linspace(0, count, max(96, 3 * entries) + 1)).astype(np.int64)
    few = min(EDGE, count // 4)
    by_rank = np.concatenate((spread, np.arange(few), np.arange(count - few, count)))
    first, last = ordered[:, few : few + 1], ordered[:, count - few - 1 : count - few]
    by_value = _ends_at(ordered, first + (last - first) * np.linspace(0, 1, max(64, entries) + 1)[1:-1])
    found = np.concatenate((np.broadcast_to(by_rank, (groups, len(by_rank))), by_value), 1)
    found.sort(axis=1)
    found[:, 1:][found[:, 1:] == found[:, :-1]] = 0  # of a gap's many cuts one is left: a run may span so many places
    found.sort(axis=1)
    places: NDArray[np.int64] = found
    return places


def _best_runs(cuts: NDArray[np.int64], sums: Floats, squares: Floats, entries: int) -> NDArray[np.int64]:
    """The ends (groups, entries - 1) of the runs of least squared error that end at cuts, of which none spans more than
    eight times its share: what that forbids in a tail Lloyd's steps find."""
    import torch

    groups, places = cuts.shape
    reach = min(places, max(32, 8 * places // entries))
    known = (cuts.astype(np.float64), np.take_along_axis(sums, cuts, 1), np.take_along_axis(squares, cuts, 1))
    count, total, square = map(torch.from_numpy, known)
    # error[d] (groups, places) is that of the run of d cuts that ends at each
    error = torch.full((reach, groups, places), torch.inf)
    error[0] = 0
    for d in range(1, reach):
        sum_, size = total[:, d:] - total[:, :-d], (count[:, d:] - count[:, :-d]).clamp_(min=1)
        error[d, :, d:] = (square[:, d:] - square[:, :-d]).sub_(sum_.square_().div_(size)).clamp_(min=0)
    best = [torch.where(count == 0, 0.0, torch.inf).float()]  # of as many runs, up to each cut
    found = torch.empty(groups, places)
    for _ in range(entries):
        lowest = best[-1].clone()
        for d in range(1, reach):
            ended = torch.add(best[-1][:, :-d], error[d, :, d:], out=found[:, d:])
            torch.minimum(lowest[:, d:], ended, out=lowest[:, d:])
        best.append(lowest)
    ends = torch.full((groups, entries), places - 1)
    spans, group = torch.arange(reach)[:, None], torch.arange(groups)
    for run in range(entries - 1, 0, -1):
        end = ends[:, run]
        ways = best[run][group, (end - spans).clamp(min=0)] + error[spans, group, end]
        ends[:, run - 1] = end - ways.argmin(0)
    found_ends: NDArray[np.int64] = np.take_along_axis(cuts, ends[:, :-1].numpy(), 1)
    return found_ends


def _means(ends: NDArray[np.int64], sums: Floats, ordered: Floats) -> Floats:
    """The mean of each run; an empty one has the weight at its end."""
    groups, count = ordered.shape
    edges = np.concatenate((np.zeros((groups, 1), np.int64), ends, np.full((groups, 1), count)), 1)
    sizes = np.diff(edges, axis=1)
    totals = np.diff(np.take_along_axis(sums, edges, 1), axis=1)
    beside = np.take_along_axis(ordered, np.minimum(edges[:, 1:], count - 1), 1)
    return np.where(sizes > 0, totals / np.maximum(sizes, 1), beside)


def _ends_at(ordered: Floats, values: Floats) -> NDArray[np.int64]:
    """How many weights of each group are at most each of its `values`."""
    import torch

    found = torch.searchsorted(torch.from_numpy(ordered), torch.from_numpy(np.ascontiguousarray(values)), right=True)
    return found.numpy()
