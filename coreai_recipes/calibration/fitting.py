"""A parameter encoded with what is known of its inputs, in blocks of whole groups of rows."""

from collections.abc import Iterable, Iterator
from functools import partial
from math import lcm, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.calibration.palettes import fit_palettes
from coreai_recipes.calibration.statistics import Statistics
from coreai_recipes.calibration.threads import Threads
from coreai_recipes.storage.base import Shape, Storage, axis_of_row, join_rows
from coreai_recipes.storage.float16 import check_range
from coreai_recipes.storage.packing import BITS_IN_A_BYTE, pack_bits
from coreai_recipes.storage.palette import Palette

# Rows are fitted so many weights at a time, by one thread: some copies of them are held.
BLOCK_WEIGHTS = 1 << 18


def fit(
    blocks: Iterable[Tensor], shape: Shape, storage: Storage, statistics: Statistics, tensor: str, threads: Threads
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The parts of a parameter as `Storage.encode` gives them, the number of each before its values, in any order.

    Raises CheckpointError, with the name of `tensor`, for what float16 cannot hold.
    """
    if not isinstance(storage, Palette):
        raise TypeError(f"{storage} is not fitted")
    width = shape[axis_of_row(shape)]
    _ = statistics.feedback, statistics.shrunk  # once, before threads ask for them
    step = lcm(storage.group, BITS_IN_A_BYTE)
    step *= max(1, BLOCK_WEIGHTS // (step * width))
    rows = join_rows(map(partial(_rows_of, width, tensor), blocks), step, prod(shape) // width)

    def fit_block(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        aligned = torch.empty(weights.shape)
        aligned.copy_(torch.from_numpy(weights))
        return fit_palettes(aligned, statistics, 1 << storage.bits, storage.group)

    for indices, palettes in threads.stream(fit_block, rows):
        yield 0, pack_bits(indices.reshape(-1), storage.bits)
        yield 1, palettes


def _rows_of(width: int, tensor: str, block: Tensor) -> NDArray[np.float32]:
    check_range(block, tensor)
    return block.float().reshape(-1, width).numpy()
