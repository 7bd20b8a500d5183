"""Columns chosen one after the other, each making up for the errors of those before it: block by block."""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 64
PASSES = 8  # of the descent that follows

# Chooses a block of columns from a first one on: weights and targets (rows, n), feedback within it (n, n); gives errors
ChooseBlock = Callable[[int, Tensor, Tensor, Tensor, Tensor], None]


def feed_back(weights: Tensor, feedback: Tensor, choose: ChooseBlock) -> None:
    """Call `choose` with each block of weights (rows, I), whose columns are in the order of `feedback` (I, I)."""
    rows, width = weights.shape
    targets = weights.clone()
    for first in range(0, width, BLOCK):
        end = min(first + BLOCK, width)
        errors = torch.empty(rows, end - first)
        own, now = weights[:, first:end].contiguous(), targets[:, first:end].contiguous()
        choose(first, own, now, feedback[first:end, first:end].contiguous(), errors)
        if end < width:
            targets[:, end:] += torch.mm(errors, feedback[first:end, end:])
