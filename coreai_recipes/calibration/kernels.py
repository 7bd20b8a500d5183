"""Compiled loops over single weights: feedback, descent, the sums behind new palettes. A group is one thread's alone.

None starts threads or reads what another group writes, so that results do not depend on how many threads there are.
"""

import numpy as np

from coreai_recipes.storage.kernels import kernel, part


@part
def nearest(middles, entries, value):  # type: ignore[no-untyped-def]
    """The number of the entry nearest to `value`, the lower one where two are: how many middles lie below it."""
    low, high = 0, entries - 1
    while low < high:
        between = (low + high) >> 1
        if value > middles[between]:
            low = between + 1
        else:
            high = between
    return low


@kernel
def choose_in_block(weights, targets, feedback, palettes, group, indices, errors):  # type: ignore[no-untyped-def]
    """One block of columns: `targets` (rows, n) are weights as the columns before have left them; each column's error
    goes to those behind it by `feedback` (n, n). Gives indices and errors (rows, n)."""
    rows, columns = targets.shape
    entries = palettes.shape[1]
    middles = np.empty(entries, np.float32)
    for first in range(0, rows, group):
        palette = palettes[first // group]
        for k in range(entries - 1):
            middles[k] = (palette[k] + palette[k + 1]) * np.float32(0.5)
        for row in range(first, first + group):
            for column in range(columns):
                k = nearest(middles, entries, targets[row, column])
                error = weights[row, column] - palette[k]
                indices[row, column] = k
                errors[row, column] = error
                for later in range(column + 1, columns):
                    targets[row, later] += error * feedback[column, later]


@kernel
def descend(gradients, hessian, palettes, group, indices, values, passes):  # type: ignore[no-untyped-def]
    """Change one weight after the other to the entry that costs least while all others stay.

    `gradients` (rows, n) are (W - values) H, kept up to date; `indices` and `values` are changed in place.
    """
    rows, columns = values.shape
    entries = palettes.shape[1]
    middles = np.empty(entries, np.float32)
    for first in range(0, rows, group):
        palette = palettes[first // group]
        for k in range(entries - 1):
            middles[k] = (palette[k] + palette[k + 1]) * np.float32(0.5)
        for row in range(first, first + group):
            gradient = gradients[row]
            for _ in range(passes):
                changed = False
                for column in range(columns):
                    wanted = values[row, column] + gradient[column] / hessian[column, column]
                    k = nearest(middles, entries, wanted)
                    step = palette[k] - values[row, column]
                    if step != 0:
                        indices[row, column] = k
                        values[row, column] = palette[k]
                        changed = True
                        for other in range(columns):
                            gradient[other] -= step * hessian[column, other]
                if not changed:
                    break


@kernel
def sum_by_entry(products, hessian, indices, group, matrices, vectors):  # type: ignore[no-untyped-def]
    """The normal equations of each group's palette: matrices (groups, K, K) and vectors (groups, K), both zeros.

    products (rows, n) are W H; a palette c with least error solves matrix c = vector.
    """
    rows, columns = indices.shape
    entries = vectors.shape[1]
    sums = np.empty((entries, columns), np.float32)
    for row in range(rows):
        at = row // group
        sums[:] = 0
        for column in range(columns):
            k = indices[row, column]
            vectors[at, k] += products[row, column]
            into = sums[k]
            for other in range(columns):
                into[other] += hessian[column, other]
        for k in range(entries):
            for other in range(columns):
                matrices[at, k, indices[row, other]] += sums[k, other]


@kernel
def choose_levels_in_block(weights, targets, feedback, scales, offsets, low, high, levels, errors):  # type: ignore[no-untyped-def]
    """As `choose_in_block`, of whole numbers low..high: a weight is (level - offset) * scale, each (rows, n)."""
    rows, columns = targets.shape
    for row in range(rows):
        for column in range(columns):
            scale, offset = scales[row, column], offsets[row, column]
            level = min(max(np.rint(targets[row, column] / scale + offset), low), high)
            error = weights[row, column] - (level - offset) * scale
            levels[row, column] = level
            errors[row, column] = error
            for later in range(column + 1, columns):
                targets[row, later] += error * feedback[column, later]


@kernel
def descend_levels(gradients, hessian, scales, offsets, low, high, levels, passes):  # type: ignore[no-untyped-def]
    """As `descend`, of whole numbers; `levels` (rows, n) are changed in place."""
    rows, columns = levels.shape
    for row in range(rows):
        gradient = gradients[row]
        for _ in range(passes):
            changed = False
            for column in range(columns):
                scale, before = scales[row, column], levels[row, column]
                wanted = before + gradient[column] / (hessian[column, column] * scale)
                level = min(max(np.rint(wanted), low), high)
                if level != before:
                    levels[row, column] = level
                    changed = True
                    step = (level - before) * scale
                    for other in range(columns):
                        gradient[other] -= step * hessian[column, other]
            if not changed:
                break


@kernel
def sum_gradients(gradient, indices, group, sums):  # type: ignore[no-untyped-def]
    """Add the gradient (rows, n) of weights to that of the entries they are, `sums` (groups, K); indices may have more
    rows."""
    rows, columns = gradient.shape
    for row in range(rows):
        of_group, chosen, given = sums[row // group], indices[row], gradient[row]
        for column in range(columns):
            of_group[chosen[column]] += given[column]
