"""A parameter encoded with what is known of its inputs, in blocks of whole groups of rows."""

from collections.abc import Iterable, Iterator
from functools import partial
from math import lcm, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.calibration.integers import fit_integers
from coreai_recipes.calibration.palettes import fit_palettes
from coreai_recipes.calibration.statistics import Statistics
from coreai_recipes.calibration.threads import Threads
from coreai_recipes.storage.base import Shape, Storage, axis_of_row, join_rows
from coreai_recipes.storage.float16 import check_range
from coreai_recipes.storage.integers import Integers
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
    width = shape[axis_of_row(shape)]
    _ = statistics.feedback, statistics.shrunk, statistics.importance, statistics.order  # before threads ask for them
    step = lcm(storage.together(shape), storage.group if isinstance(storage, Palette) else 1, BITS_IN_A_BYTE)
    step *= max(1, BLOCK_WEIGHTS // (step * width))
    rows = join_rows(map(partial(_rows_of, width, tensor), blocks), step, prod(shape) // width)

    def fit_block(weights: NDArray[np.float32]) -> list[NDArray[Any]]:
        aligned = torch.empty(weights.shape)
        aligned.copy_(torch.from_numpy(weights))
        return _fit_rows(aligned, storage, statistics)

    for parts in threads.stream(fit_block, rows):
        yield from enumerate(parts)


def _fit_rows(weights: Tensor, storage: Storage, statistics: Statistics) -> list[NDArray[Any]]:
    """The parts of some rows (rows, I)."""
    match storage:
        case Palette():
            indices, palettes = fit_palettes(weights, statistics, 1 << storage.bits, storage.group)
            return [pack_bits(indices.reshape(-1), storage.bits), palettes]
        case Integers():
            data, scales, offsets = fit_integers(weights, statistics, storage)
            found: list[NDArray[Any]] = [pack_bits(data.reshape(-1), storage.bits), scales]
            return found if storage.symmetric else [*found, pack_bits(offsets.reshape(-1), storage.bits)]
        case _:
            raise TypeError(f"{storage} is not fitted")


def _rows_of(width: int, tensor: str, block: Tensor) -> NDArray[np.float32]:
    check_range(block, tensor)
    return block.float().reshape(-1, width).numpy()
