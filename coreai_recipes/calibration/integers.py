"""Whole numbers fitted to what a text says of a matrix's inputs: scales that it would choose, feedback, descent."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.calibration.feedback import PASSES, feed_back
from coreai_recipes.calibration.kernels import choose_levels_in_block, descend_levels
from coreai_recipes.calibration.statistics import Statistics
from coreai_recipes.storage.integers import Integers


def fit_integers(
    weights: Tensor, statistics: Statistics, storage: Integers
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    """Data, scales and offsets of rows (rows, I), float32, as `Integers.quantize` gives them."""
    rows, width = weights.shape
    _, scale, offset = storage.quantize(weights.numpy(), statistics.importance.numpy())
    size = width // scale.shape[1]
    scales = torch.from_numpy(scale.astype(np.float32)).repeat_interleave(size, 1)
    offsets = torch.from_numpy(offset.astype(np.float32)).repeat_interleave(size, 1)
    low, high = storage.ends
    order, levels = statistics.order, torch.empty(rows, width)
    ordered_scales, ordered_offsets = scales[:, order], offsets[:, order]

    def choose(first: int, own: Tensor, targets: Tensor, inside: Tensor, errors: Tensor) -> None:
        columns = slice(first, first + targets.shape[1])
        chosen = torch.empty_like(targets)
        choose_levels_in_block(
            own.numpy(),
            targets.numpy(),
            inside.numpy(),
            ordered_scales[:, columns].numpy(),
            ordered_offsets[:, columns].numpy(),
            np.float32(low),
            np.float32(high),
            chosen.numpy(),
            errors.numpy(),
        )
        levels[:, order[columns]] = chosen

    feed_back(weights[:, order], statistics.feedback, choose)
    gradients = torch.mm(weights - (levels - offsets) * scales, statistics.shrunk)
    descend_levels(
        gradients.numpy(),
        statistics.shrunk.numpy(),
        scales.numpy(),
        offsets.numpy(),
        np.float32(low),
        np.float32(high),
        levels.numpy(),
        PASSES,
    )
    data = levels.numpy().astype(np.int16).astype(np.uint8) & np.uint8((1 << storage.bits) - 1)
    return data, scale, offset
