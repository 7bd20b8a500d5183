"""What widths cost on gemma4-tiny's layers, ours beside coremltools' palettes: one JSON line.

python -m bench.children.compression REPEATS

KL divergence from our own Decoder with the checkpoint's weights, which `recipe verify gemma4-tiny` holds against
transformers; on its held-out tokens. The table and what stands before the layers stay as they are.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coreai_recipes.calibration.passing import folded_decoder
from coreai_recipes.calibration.text import read_windows
from coreai_recipes.calibration.threads import threads
from coreai_recipes.checkpoint.open import data_folder, open_checkpoint
from coreai_recipes.decoder.filling import Weight, bind_weights
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.recipe.schema import Calibration, Compress
from coreai_recipes.search.candidates import CANDIDATES
from coreai_recipes.search.choosing import Choice, Matrix, bits_of, kl_of, within_bits
from coreai_recipes.search.predicting import Kept, predict
from coreai_recipes.verification.loss import Loss, logits_of_decoder, measure_loss
from coreai_recipes.weights.binding import Binding

NAME = "gemma4-tiny"
WINDOW, WINDOWS, SEEN = 512, 6, 32
BUDGETS = (3.06, 4.06, 4.5, 5.0, 6.25)
GROUP = 16


@dataclass(frozen=True)
class Given:
    """A parameter in memory."""

    tensor: str
    values: Tensor

    def blocks(self) -> Iterator[Tensor]:
        yield self.values

    def read(self) -> Tensor:
        return self.values

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        return self.values[list(rows)]


def main(repeats: int) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(NAME)
    checkpoint = open_checkpoint(f"embedded:{NAME}")
    decoder = folded_decoder(recipe)
    originals = bind_weights(decoder, checkpoint)
    held_out = json.loads((data_folder("examples") / NAME / "prompts.json").read_text())["held_out"]
    windows = [held_out[start : start + WINDOW] for start in range(0, WINDOWS * WINDOW, WINDOW)]
    theirs = logits_of_decoder(recipe, originals, decoder.form)
    references = [theirs(window) for window in windows]

    def loss(weights: Mapping[str, Weight]) -> Loss:
        given = iter(references)
        ours = logits_of_decoder(recipe, {**originals, **weights}, decoder.form)
        return measure_loss(windows, ours, lambda _: next(given))

    with temporary_folder() as folder:
        checkpoint.write_tokenizer(folder)
        text, _ = read_windows(Calibration(tokens=SEEN * WINDOW), folder, recipe.export.context)
    names = [name for name in originals if name.startswith("layers.") and len(originals[name].shape) > 1]
    found: dict[str, Any] = {"weights": sum(prod(originals[name].shape) for name in names), "matrices": len(names)}
    found["unchanged"] = figures(loss({}), 16.0)
    found["ours"] = {
        "data-free": of_ours(calibrated(recipe, None), checkpoint, text, loss, names),
        "fitted": of_ours(calibrated(recipe, Calibration()), checkpoint, text, loss, names),
    }
    found["coremltools"] = {}
    there = importlib.util.find_spec("sklearn") is not None  # which coremltools clusters with
    for bits in (3, 4, 6) if there else ():
        weights, seconds = of_coremltools(originals, names, bits, 1)
        found["coremltools"][str(bits)] = {**figures(loss(weights), bits), "seconds": seconds}
    found["seconds"] = {"ours": seconds_of(originals, names, repeats)}
    if there:
        found["seconds"]["coremltools"] = of_coremltools(originals, names, 4, repeats)[1]
    print(json.dumps(found))


def calibrated(recipe: Recipe, calibration: Calibration | None) -> Recipe:
    return recipe.model_copy(update={"compress": Compress(calibration=calibration)})


def of_ours(
    recipe: Recipe, checkpoint: Any, text: Sequence[Sequence[int]], loss: Callable[..., Loss], names: Sequence[str]
) -> dict[str, Any]:
    """Every width for all matrices of the layers, and the search's choice at each budget: predicted and measured."""
    found: dict[str, Any] = {}
    with temporary_folder() as folder, threads() as own:
        kept = Kept(folder)
        started = time.process_time()
        everything = predict(recipe, checkpoint, text, kept, own)
        found["seconds"] = time.process_time() - started
        # all are to be compressed, small ones too
        matrices = [
            replace(each, options=tuple(o for o in each.options if CANDIDATES[o.form].storage is not None))
            for each in everything
            if f"{each.name}.weight" in names
        ]
        weights = sum(each.weights for each in matrices)

        def measured(choice: Choice) -> dict[str, float]:
            forms = {f"{name}.weight": option.form for name, option in choice.items()}
            return {
                **figures(loss(kept.weights({}, forms)), bits_of(choice) / weights),
                "predicted": kl_of(choice),
            }

        found["uniform"] = {
            form.words: measured(uniform(matrices, number))
            for number, form in enumerate(CANDIDATES)
            if form.storage is not None
        }
        found["search"] = {f"{bits:g}": measured(within_bits(matrices, bits * weights)) for bits in BUDGETS}
    return found


def uniform(matrices: Sequence[Matrix], number: int) -> Choice:
    return {each.name: next(o for o in each.options if o.form == number) for each in matrices}


def of_coremltools(
    originals: Mapping[str, Binding], names: Sequence[str], bits: int, repeats: int
) -> tuple[dict[str, Given], float]:
    """What coremltools' palettizer makes of the matrices, by the function that it calls for each, and its seconds."""
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    given = {name: originals[name].read().half().numpy() for name in names}
    taken, found = [], {}
    for _ in range(repeats):
        started = time.process_time()
        made = {
            name: palettize_weights.blockwise_compress(values, "KMEANS", bits, [GROUP, 0])
            for name, values in given.items()
        }
        taken.append(time.process_time() - started)
    for name, parameters in made.items():
        values = given[name] if parameters is None else palettize_weights.decompress(parameters)
        found[name] = Given(name, torch.from_numpy(np.asarray(values, np.float32)))
    return found, median(taken)


def seconds_of(originals: Mapping[str, Binding], names: Sequence[str], repeats: int) -> float:
    """Processor seconds of palettes of 4 bits for all matrices, the median."""
    form = next(form for form in CANDIDATES if form.said.get("bits") == 4)
    taken = []
    for turn in range(repeats + 1):
        started = time.process_time()
        for name in names:
            shape = originals[name].shape
            if form.storage is not None:
                for _ in form.storage.fitted(shape).encode(originals[name].blocks(), shape, name):
                    pass
        taken += [time.process_time() - started] if turn else []  # the first one compiles
    return median(taken)


def figures(loss: Loss, bits: float) -> dict[str, float]:
    return {"bits": bits, "kl": loss.kl or 0.0, "top_1": loss.top_1 or 0.0, "perplexity": loss.perplexity}


if __name__ == "__main__":
    main(int(sys.argv[1]))
