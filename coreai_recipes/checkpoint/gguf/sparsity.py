"""Gemma 3n's activation_sparsity_pattern, which a GGUF file has as how many deviations above the mean are cut off."""

from math import inf
from statistics import NormalDist
from typing import Any

import numpy as np

from coreai_recipes.checkpoint.gguf.architecture import Architecture
from coreai_recipes.checkpoint.gguf.metadata import Metadata

KEY = "activation_sparsity_scale"
MOST_DIGITS = 9


def complete_sparsity(architecture: Architecture, metadata: Metadata, config: dict[str, Any]) -> None:
    """The share of each layer's gates that is cut off. Raises CheckpointError for a list that does not fit."""
    key = f"{architecture.name}.{KEY}"
    if KEY not in architecture.checked:
        return
    scales, layers = metadata.numbers(key), config["num_hidden_layers"]
    if scales is None:
        raise metadata.refuse(key, "is missing")
    if len(scales) != layers or any(scale != scale or scale == inf for scale in scales):
        raise metadata.refuse(key, f"is not a list of {layers} numbers")
    config["activation_sparsity_pattern"] = [share_below(scale) for scale in scales]


def share_below(scale: float) -> float:
    """The share of a normal distribution below `scale` deviations: the shortest decimal that means that float32.

    0.95 is stored as the float32 nearest 1.6448536, which is the quantile of all shares between 0.94999999 and 0.95.
    """
    share = 0.0 if scale == -inf else NormalDist().cdf(scale)
    for digits in range(1, MOST_DIGITS):
        rounded = round(share, digits)
        if rounded in (0.0, 1.0):
            if rounded == share:
                return rounded
        elif abs(NormalDist().inv_cdf(rounded) - scale) <= 4 * np.spacing(np.float32(max(abs(scale), 2.0**-20))):
            return rounded
    return share
