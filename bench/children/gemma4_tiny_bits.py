"""What widths cost on gemma4-tiny's layers, ours beside coremltools' of the same matrices: one JSON line.

python -m bench.children.gemma4_tiny_bits

On its held-out tokens. The table and what stands before the layers stay as they are.
"""

import json
import time
from math import prod
from typing import Any

import torch

from bench.children.judging import (
    WINDOW,
    Given,
    Judge,
    alone,
    calibrated,
    coremltools_integers,
    coremltools_palettes,
    default_windows,
)
from bench.children.searching import of_layers, of_search, of_uniform
from coreai_recipes.calibration.threads import threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import data_folder, open_checkpoint
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.recipe.schema import Calibration
from coreai_recipes.search.predicting import Kept, predict

NAME = "gemma4-tiny"
WINDOWS, SEEN = 6, 32
BUDGETS = (3.06, 4.06, 4.5, 5.0, 6.25)


def main() -> None:
    alone()
    recipe, checkpoint = load_recipe(NAME), open_checkpoint(f"embedded:{NAME}")
    held_out = json.loads((data_folder("examples") / NAME / "prompts.json").read_text())["held_out"]
    judge = Judge(recipe, checkpoint, {NAME: [held_out[i : i + WINDOW] for i in range(0, WINDOWS * WINDOW, WINDOW)]})
    names = [name for name, each in judge.originals.items() if name.startswith("layers.") and len(each.shape) > 1]
    found: dict[str, Any] = {
        "weights": sum(prod(judge.originals[name].shape) for name in names),
        "matrices": len(names),
        "unchanged": {"bits": 16.0, **judge({})},
        "ours": {
            "data-free": of_ours(calibrated(recipe, None), checkpoint, judge),
            "fitted": of_ours(calibrated(recipe, Calibration()), checkpoint, judge),
        },
        "coremltools": of_coremltools(judge, names),
    }
    print(json.dumps(found))


def of_ours(recipe: Recipe, checkpoint: Checkpoint, judge: Judge) -> dict[str, Any]:
    """Every width for all matrices of the layers, and the search's choice at each budget: predicted and measured."""
    windows = default_windows(recipe, checkpoint, SEEN * WINDOW)
    with temporary_folder() as folder, threads() as own:
        kept = Kept(folder)
        started = time.process_time()
        matrices = of_layers(predict(recipe, checkpoint, windows, kept, own))
        seconds = time.process_time() - started
        return {
            "seconds": seconds,
            "uniform": of_uniform(matrices, kept, judge),
            "search": of_search(matrices, kept, judge, BUDGETS),
        }


def of_coremltools(judge: Judge, names: list[str]) -> dict[str, Any]:
    found = {}
    for words, bits, make in (
        ("3 bits", 3 + 1 / 32, lambda values: coremltools_palettes(values, 3)),
        ("4 bits", 4 + 1 / 16, lambda values: coremltools_palettes(values, 4)),
        ("int4 for blocks of 32", 4.5, lambda values: coremltools_integers(values, 4, 32)),
        ("6 bits", 6.25, lambda values: coremltools_palettes(values, 6)),
        ("int8", 8 + 1 / 16, lambda values: coremltools_integers(values, 8, 0)),
    ):
        made = {
            name: Given(name, torch.from_numpy(make(judge.originals[name].read().half().numpy()))) for name in names
        }
        found[words] = {"bits": bits, **judge(made)}
    return found


if __name__ == "__main__":
    main()
