"""Attention with linear biases: scores fall with distance, by a slope of each head's own (arXiv 2108.12409)."""

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.recipe.schema import Alibi

# x - (x - x * SPLIT) keeps the upper 8 of float32's 24 bits, those of bfloat16 (Veltkamp); no program has bfloat16.
SPLIT = 2.0**16 + 1
Floats = TypeVar("Floats", Tensor, NDArray[np.float32])


def slopes(spec: Alibi, num_heads: int) -> tuple[float, ...]:
    """Each head's slope: 2^(-max i / n) for the first n, the largest power of two, then every second of the series of
    2n. transformers' BLOOM and MPT write it differently and mean the same."""
    n = 2 ** math.floor(math.log2(num_heads))
    exponents = [i / n for i in range(1, n + 1)] + [i / (2 * n) for i in range(1, 2 * (num_heads - n), 2)]
    values = np.array([2.0 ** (-spec.max * exponent) for exponent in exponents], np.float32)
    return tuple((round_to_bfloat16(values) if spec.rounding == "bfloat16" else values).tolist())


def bias(
    spec: Alibi,
    num_heads: int,
    num_kv_heads: int,
    score_scale: float,
    key_positions: Tensor,
    query_positions: Tensor,
    keys_last: bool = False,
) -> Tensor:
    """(G, K, H/G, S) float32, or (1, G, H/G, K) for one query with `keys_last`, to be added to the scores.

    It is slope * (key - query), zero for the query's own position. transformers adds slope * key, which differs by what
    is the same for all keys of a query, and so not after the softmax; but it has no bits left in float16 at position
    2048, where near keys matter most. Keys later than the query, which a mask hides, get zero.
    """
    heads = (num_kv_heads, num_heads // num_kv_heads, 1)
    shape, of_keys = ((1, *heads), (1, 1, 1, -1)) if keys_last else ((heads[0], 1, *heads[1:]), (1, -1, 1, 1))
    slope = torch.tensor(slopes(spec, num_heads), dtype=torch.float32, device=key_positions.device).view(shape)
    keys, queries = key_positions.view(of_keys).float(), query_positions.view(1, 1, 1, -1).float()
    if spec.rounding == "bfloat16":
        fall = round_to_bfloat16(slope * round_to_bfloat16(keys)) - round_to_bfloat16(
            slope * round_to_bfloat16(queries)
        )
    else:
        fall = slope * (keys - queries)
    fall = torch.minimum(fall, torch.zeros((), device=fall.device))
    return scaled(fall, score_scale) if spec.scaled else fall


def round_to_bfloat16(x: Floats) -> Floats:
    """x in bfloat16's 8 bits, by arithmetic that every program has."""
    large = x * SPLIT
    return large - (large - x)
