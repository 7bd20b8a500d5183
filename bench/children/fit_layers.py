"""The widest layers of Gemma 4 E2B's shape fitted to a text as `recipe build` fits them: one JSON line.

python -m bench.children.fit_layers TOKENS

Weights and tokens are random: time and memory depend on neither. Four layers, a kind each; the last two, whose MLPs are
12,288 wide, are fitted.
"""

import json
import sys
import time
from itertools import pairwise
from math import prod

import numpy as np

from bench.children.judging import WINDOW
from coreai_recipes.calibration.calibrating import calibrate
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe import load_recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint

LAYERS = "model.layers=[{repeat: 1, of: [sliding, full, sliding_shared, full_shared]}]"
FITTED = ("layers.2.", "layers.3.")
RULES = ", ".join(f'{{match: "layers.{index}.*", kind: palettize, bits: 4, group: 16}}' for index in (2, 3))
COMPRESS = f"compress={{rules: [{RULES}]}}"


def main(tokens: int) -> None:
    recipe = load_recipe("gemma4", [LAYERS, COMPRESS])
    checkpoint = RandomCheckpoint(recipe)
    ids = np.random.default_rng(0).integers(0, recipe.model.vocab_size, (tokens // WINDOW, WINDOW)).tolist()
    ends: list[float] = []

    def on_progress(step: str, done: int, total: int) -> None:
        ends.append(time.process_time())  # of what stands before the layers, of each layer, of the head

    with temporary_folder() as folder:
        fitted = calibrate(recipe, checkpoint, ids, folder, on_progress)
    if any(not name.startswith(FITTED) for name in fitted):
        raise ValueError(f"{sorted(fitted)}: others were fitted too")
    layers = [after - before for before, after in pairwise(ends)]
    found = {"tokens": tokens, "weights": sum(prod(each.shape) for each in fitted.values())}
    print(json.dumps({**found, "pass_seconds": layers[:2], "fit_seconds": layers[2:4]}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
