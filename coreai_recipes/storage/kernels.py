"""Compiled loops over single weights, where the time of compressing goes; `clustering` and `palette` call them.

They release the interpreter's lock and start no threads of their own: a caller gives each thread whole groups, so that
results do not depend on how many there are. Those that call one another stand in one file: a compiled one is kept until
its own file changes.
"""

from typing import Any

import numba
import numpy as np

SIGN = 0x8000
KEYS = 0x10000  # of float16, each value's place in the order of all
PAGE = 6  # keys are looked at in pages of 64
CUTS = 256  # at least so many places for the ends of runs are tried at first
CUTS_OF_A_RUN = 5
MOST_CUTS = 512  # of more, two for each run
REACH = 32  # values on either side of an end that the second programme tries
MOST_ROUNDS = 6
MOST_STEPS = 100
LARGEST = np.float32(65504)  # of float16
UNITS = 2.0**24  # of float16's smallest number in 1: all of its numbers are whole ones
MANTISSAS = 1 << 11


def kernel(function: Any) -> Any:
    """Compiled at its first call, and kept: beside this file, in the user's caches where that cannot be written, and
    for this process alone where there is neither."""
    try:
        return numba.njit(function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # numba finds no place to write to
        return numba.njit(function, nogil=True, error_model="numpy")


part = numba.njit(nogil=True, error_model="numpy")


@kernel
def choose_palettes(groups, importance, values, palettes):  # type: ignore[no-untyped-def]
    """palettes (groups, entries) float64, rising, of groups (groups, n), which are float16's bits.

    importance (1 or groups, period) float32 is how much a squared error counts, the same every `period` weights;
    values (KEYS,) float32 are those of float16 in rising order.
    """
    runs, most_values = palettes.shape[1], min(groups.shape[1], KEYS) + 1
    most_cuts = min(max(CUTS, CUTS_OF_A_RUN * runs), max(MOST_CUTS, 2 * runs))
    places = max(most_values, most_cuts) + 1
    sums, used = np.zeros(KEYS), np.zeros(KEYS >> PAGE, np.bool_)
    distinct, mass, total = np.empty(places), np.zeros(places), np.zeros(places)
    cuts, mass_at_cuts, total_at_cuts = np.empty(places, np.int64), np.empty(places), np.empty(places)
    low, high, ends = np.empty(runs, np.int64), np.empty(runs, np.int64), np.empty(runs, np.int64)
    best, further = np.empty(places), np.empty(places)
    starts = np.empty(runs * max(most_cuts + 1, 2 * REACH + 1), np.int32)
    for group in range(len(groups)):
        weights = importance[group % len(importance)]
        count = merge_equal(groups[group], weights, values, sums, used, distinct, mass, total)
        if count <= runs:
            for run in range(runs):
                palettes[group, run] = distinct[max(0, min(run, count - 1))]
            continue
        found = choose_cuts(distinct, mass, count, most_cuts, max(runs, 1), cuts, best)
        for cut in range(found + 1):
            mass_at_cuts[cut], total_at_cuts[cut] = mass[cuts[cut]], total[cuts[cut]]
        for run in range(runs):
            low[run], high[run], ends[run] = run + 1, found - runs + run + 1, found
        best_ends(mass_at_cuts, total_at_cuts, low, high, ends, best, further, starts)
        for run in range(runs):
            ends[run] = cuts[ends[run]]
        for _ in range(MOST_ROUNDS if found < count else 0):
            move_ends(distinct, mass, total, count, ends, palettes[group])
            for run in range(runs):
                # a run that has lost its values gets some: ends rise strictly
                low[run] = max(ends[run] - REACH, low[run - 1] + 1 if run else 1)
                high[run] = max(min(ends[run] + REACH, count - runs + run + 1), low[run])
            low[-1] = high[-1] = count
            best_ends(mass, total, low, high, ends, best, further, starts)
            at_limit = False
            for run in range(runs - 1):
                at_limit |= (ends[run] == low[run]) & (low[run] > run + 1)
                at_limit |= (ends[run] == high[run]) & (high[run] < count - runs + run + 1)
            if not at_limit:
                break
        means_of_runs(distinct, mass, total, ends, palettes[group])


@part
def merge_equal(bits, importance, values, sums, used, distinct, mass, total):  # type: ignore[no-untyped-def]
    """How many distinct values there are; in rising order, with the running sums of importance and of importance times
    value from 0 on. What is not important at all is left out. `sums` and `used` are zero, and are left so."""
    column, period = 0, len(importance)
    for i in range(len(bits)):
        of_weight = np.int64(bits[i])
        key = KEYS - 1 - of_weight if of_weight & SIGN else of_weight + SIGN
        used[key >> PAGE] = True
        sums[key] += importance[column]
        column += 1
        if column == period:
            column = 0
    sums[SIGN] += sums[SIGN - 1]  # 0 and -0
    sums[SIGN - 1] = 0.0
    used[SIGN >> PAGE] = True
    count, mass_so_far, total_so_far = 0, 0.0, 0.0
    for page in range(len(used)):
        if used[page]:
            used[page] = False
            for place in range(page << PAGE, (page + 1) << PAGE):
                weight, value = sums[place], np.float64(values[place])
                sums[place] = 0.0
                mass_so_far += weight
                total_so_far += weight * value
                # written in any case: a branch that is taken now and then costs more
                distinct[count], mass[count + 1], total[count + 1] = value, mass_so_far, total_so_far
                count += weight != 0.0
    if count == 0:
        distinct[0] = 0.0
    return count


@part
def choose_cuts(distinct, mass, count, most, least, cuts, spans):  # type: ignore[no-untyped-def]
    """How many cuts there are behind 0: places where a run may end at first, the last behind all values.

    They lie as dense as the root of weight times gap, which is about how the ends of the best runs do; no gap counts
    for more than one cut, however far an outlier is.
    """
    if count <= most:
        for cut in range(count + 1):
            cuts[cut] = cut
        return count
    for i in range(count - 1):
        spans[i] = np.sqrt((mass[i + 2] - mass[i]) * (distinct[i + 1] - distinct[i]))
    step = np.inf
    for _ in range(3):
        length = 0.0
        for i in range(count - 1):
            length += min(step, spans[i])
        step = length / (most - 1)
    cuts[0] = 0
    found, reached = 1, 0.0
    for i in range(count - 1):
        reached += min(step, spans[i])
        # as many are left over at the end as there must be
        if found < most and (reached >= step * (found - 0.5) or count - 1 - i <= least - found):
            cuts[found] = i + 1
            found += 1
    cuts[found] = count
    return found


@part
def best_ends(mass, total, low, high, ends, best, further, starts):  # type: ignore[no-untyped-def]
    """Move the ends of the runs, each within low..high of its own and the last where it is, to the least squared error.

    A programme over runs and ends (Wang and Song, Ckmeans.1d.dp). The best start of a run never falls as its end rises:
    halving the ends halves the starts to try. `starts` keeps the best of each run and end, run after run.
    """
    stack = np.empty((64, 4), np.int64)
    for end in range(low[0], high[0] + 1):
        best[end] = total[end] * total[end] / mass[end]
    kept = 0
    for run in range(1, len(ends)):
        stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = low[run], high[run], low[run - 1], high[run - 1]
        depth = 1
        while depth:
            depth -= 1
            first, last, least, most = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
            end = (first + last) >> 1
            found, largest = least, -1.0
            mass_to_end, total_to_end = mass[end], total[end]
            for start in range(least, min(most, end - 1) + 1):
                sum_ = total_to_end - total[start]
                gain = best[start] + sum_ * sum_ / (mass_to_end - mass[start])
                if gain > largest:
                    found, largest = start, gain
            further[end] = largest
            starts[kept + end - low[run]] = found
            if first < end:
                stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = first, end - 1, least, found
                depth += 1
            if end < last:
                stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = end + 1, last, found, most
                depth += 1
        kept += high[run] - low[run] + 1
        best, further = further, best
    for run in range(len(ends) - 1, 0, -1):
        kept -= high[run] - low[run] + 1
        ends[run - 1] = starts[kept + ends[run] - low[run]]


@part
def move_ends(distinct, mass, total, count, ends, means):  # type: ignore[no-untyped-def]
    """Lloyd's steps: each end to the middle between the means on either side of it, until none moves."""
    for _ in range(MOST_STEPS):
        means_of_runs(distinct, mass, total, ends, means)
        moved = False
        for run in range(len(ends) - 1):
            middle, end = (means[run] + means[run + 1]) / 2, ends[run]
            while end < count and distinct[end] <= middle:
                end += 1
            while end > 0 and distinct[end - 1] > middle:
                end -= 1
            moved |= end != ends[run]
            ends[run] = end
        if not moved:
            break


@part
def means_of_runs(distinct, mass, total, ends, means):  # type: ignore[no-untyped-def]
    first = 0
    for run in range(len(ends)):
        end = ends[run]
        means[run] = (total[end] - total[first]) / (mass[end] - mass[first]) if end > first else distinct[first - 1]
        first = end


@kernel
def number_entries(groups, firsts, numbers):  # type: ignore[no-untyped-def]
    """numbers (groups, n) uint8 of the entries nearest to groups (groups, n), bits of float16; firsts (groups, entries
    - 1) are the keys from which on the next entry is nearer."""
    by_key = np.empty(KEYS, np.uint8)
    for group in range(len(groups)):
        first = 0
        for entry in range(firsts.shape[1]):
            by_key[first : firsts[group, entry]] = entry
            first = firsts[group, entry]
        by_key[first:] = firsts.shape[1]
        for i in range(groups.shape[1]):
            bits = np.int64(groups[group, i])
            numbers[group, i] = by_key[KEYS - 1 - bits if bits & SIGN else bits + SIGN]


@kernel
def pack_eights(numbers, bits, packed):  # type: ignore[no-untyped-def]
    """Eight numbers of so many bits into as many bytes, the first in the lowest bits of the first."""
    for eight in range(len(numbers) // 8):
        word = np.uint64(0)
        for i in range(8):
            word |= np.uint64(numbers[8 * eight + i]) << np.uint64(bits * i)
        for i in range(bits):
            packed[bits * eight + i] = word >> np.uint64(8 * i)


@kernel
def unpack_eights(packed, bits, numbers):  # type: ignore[no-untyped-def]
    for eight in range(len(numbers) // 8):
        word = np.uint64(0)
        for i in range(bits):
            word |= np.uint64(packed[bits * eight + i]) << np.uint64(8 * i)
        for i in range(8):
            numbers[8 * eight + i] = (word >> np.uint64(bits * i)) & np.uint64((1 << bits) - 1)


@kernel
def find_grids(blocks, low, high, scales, offsets):  # type: ignore[no-untyped-def]
    """scales (blocks,) float32 with which each block of (blocks, n) is whole numbers low..high exactly, as of a
    checkpoint that was quantised so, and offsets that make them so where low is 0; a scale is 0 where there is none."""
    levels = high - low
    for block in range(len(blocks)):
        scales[block], offsets[block] = 0, 0
        step, least, most, is_grid = np.int64(0), np.int64(0), np.int64(0), True
        for i in range(blocks.shape[1]):
            exact = np.float64(blocks[block, i]) * UNITS
            units = np.int64(exact)
            least, most = min(least, units), max(most, units)
            rest = abs(units)
            while rest:
                step, rest = rest, step % rest
            if np.float64(units) != exact or most - least > levels * step:
                is_grid = False
                break
        if not is_grid or step == 0:
            continue
        for parts in range(1, levels + 1):  # of a step that float16 does not hold a part may be one that it does
            scale = step // parts
            mantissa = scale
            while mantissa & 1 == 0:
                mantissa >>= 1
            lowest = least // scale if low else 0
            if most // scale - (0 if low else least // scale) > high or lowest < low:
                break
            if scale * parts == step and mantissa < MANTISSAS:
                scales[block] = scale / UNITS
                offsets[block] = 0 if low else -(least // scale)
                break


@kernel
def quantize_blocks(blocks, importance, scales, offsets, low, high, numbers, chosen):  # type: ignore[no-untyped-def]
    """numbers (blocks, n) uint8, low..high, of blocks (blocks, n) float32, by the scale and offset (blocks, tries) with
    the least squared error; chosen (blocks,) says which. importance (blocks of a row, n) is the same for all rows."""
    tries = scales.shape[1]
    for block in range(len(blocks)):
        counted = importance[block % len(importance)]
        best, least = 0, np.float32(np.inf)
        for at in range(tries if tries > 1 else 0):
            scale, offset = scales[block, at], offsets[block, at]
            step, first, last = np.float32(1) / scale, low - offset, high - offset
            error = np.float32(0)
            for i in range(blocks.shape[1]):
                weight = blocks[block, i]
                off = weight - min(max(np.rint(weight * step), first), last) * scale
                error += counted[i] * off * off
            if error < least:
                best, least = at, error
        scale, offset = scales[block, best], offsets[block, best]
        # beyond float16 none is given back
        most = np.floor(LARGEST / scale)
        first, last = max(low - offset, -most), min(high - offset, most)
        for i in range(blocks.shape[1]):
            number = min(max(np.rint(blocks[block, i] / scale), first), last) + offset
            numbers[block, i] = np.uint8(np.int64(number))
        chosen[block] = best
