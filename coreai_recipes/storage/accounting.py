"""Every parameter of a package by itself: how it is stored, what it takes, how near it is to the checkpoint's."""

import math
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.compression import Parameters, shown_name
from coreai_recipes.storage.reading import StoredWeight, stored_weights


def account(
    recipe: Recipe, stored: Parameters, sources: Mapping[str, Checkpoint], packed: Path | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each parameter, in a package's order; bytes are those of `Parameters`, without alignment.

    `sources` are the checkpoints by stack. `psnr_db` is of the stored weight in the form in which it is exported, None
    where no checkpoint has it. What was fitted to a text is read from the weight.bin `packed`.
    """
    weights: dict[str, Weight] = {}
    for key, checkpoint in sources.items():
        found = stored_weights(recipe, checkpoint, key, packed)
        weights |= {recipe.stacks[key].prefix + name: weight for name, weight in found.items()}
    for name, shape in stored.shapes.items():
        storage = stored.compression.storage(name, shape)
        yield {
            "name": shown_name(name),
            "form": str(storage),
            "weights": prod(shape),
            "bits_per_weight": round(8 * storage.bytes(shape) / prod(shape), 4),
            "bytes": storage.bytes(shape),
            "psnr_db": _psnr(weights, name),
        }


def _psnr(weights: Mapping[str, Weight], name: str) -> float | None:
    """20 log10(max|w|) - 10 log10(mean((w - w')^2)) in dB, block by block."""
    weight = weights.get(name)
    if not isinstance(weight, StoredWeight):
        return None
    error, peak, count = 0.0, 0.0, 0
    for one, other in weight.pairs():
        error += (one - other).double().square().sum().item()
        peak = max(peak, one.abs().max().item())
        count += one.numel()
    if error == 0:
        return math.inf
    return -math.inf if peak == 0 else round(20 * math.log10(peak) - 10 * math.log10(error / count), 2)
