"""What widths cost on SmolLM2: one part of the figures as a JSON line.

python -m bench.children.smollm2_bits PART CHECKPOINT LICENCE GENESIS

Parts: `coremltools`, `plain` (ours without a text), `search` (ours fitted to the default text: a form for all, and
choices), `ingredients` (what each step of a fit buys), `tuned` (and `compress.tune`), `tokens` (fits to less text),
`regrouped` (and `compress.regroup`), `rotated` (forms of 4 bits on a rotated SmolLM2, whose weights lie on no grid of
an earlier quantisation). KL divergence is the mean of the first 512 tokens of both texts; bits are of the matrices of
the layers, or with the table where that is said.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.children.judging import (
    WINDOW,
    Given,
    Judge,
    alone,
    calibrated,
    coremltools_integers,
    coremltools_palettes,
    default_windows,
    read_text,
)
from bench.children.rotating import rotated
from bench.children.searching import TABLE, measured, of_layers, of_search, of_uniform, uniform
from bench.texts import NAMES
from coreai_recipes.calibration import palettes
from coreai_recipes.calibration.calibrating import calibrate
from coreai_recipes.calibration.fitting import fit
from coreai_recipes.calibration.passing import TextPass
from coreai_recipes.calibration.statistics import Statistics
from coreai_recipes.calibration.threads import Threads, threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import Weight
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe import Recipe, load_recipe
from coreai_recipes.recipe.schema import Calibration, Compress
from coreai_recipes.search.candidates import CANDIDATES
from coreai_recipes.search.choosing import within_bits
from coreai_recipes.search.predicting import Kept, predict
from coreai_recipes.storage.base import Storage
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.palette import Palette

WINDOWS = 1  # of each text
SEEN = 32  # windows that are fitted to: 16,384 tokens
FEWER = (2, 4, 9, 16)
TUNED = (32, 60)  # steps: one reading of the text, and what the target is said of
FOUR_BITS = {"kind": "palettize", "bits": 4, "group": 16}
BUDGETS = (3.02, 4.02, 4.5, 5.0, 6.1)
WHOLE = (4.5, 4.85)
BITS = 4
TABLE_NAME = f"{TABLE}.weight"
INT4 = "int4 for blocks of 32"
FOUR, SIX = (next(n for n, form in enumerate(CANDIDATES) if form.said.get("bits") == bits) for bits in (4, 6))
PLAIN: dict[str, Storage] = {
    "3 bits": Palette(3, 16),
    "4 bits": Palette(4, 16),
    INT4: Integers(4, 32, True),
    "6 bits": Palette(6, 16),
    "int8": Integers(8, None, True),
}


class Model:
    """SmolLM2, the judge of both texts, and the names of the matrices of its layers."""

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint, texts: list[Path]) -> None:
        self.recipe, self.checkpoint, self.texts = recipe, checkpoint, texts
        read = {name: read_text(path, recipe, checkpoint, WINDOWS) for name, path in zip(NAMES, texts, strict=True)}
        self.judge = Judge(self.recipe, self.checkpoint, read)
        originals = self.judge.originals
        self.names = [name for name, each in originals.items() if name.startswith("layers.") and len(each.shape) > 1]

    def bits(self, storage: Storage, names: list[str]) -> float:
        shapes = [self.judge.originals[name].shape for name in names]
        return 8 * sum(storage.fitted(s).bytes(s) for s in shapes) / sum(map(prod, shapes))

    def encoded(self, storage: Storage, names: list[str]) -> dict[str, Weight]:
        """Without a text."""
        found: dict[str, Weight] = {}
        for name in names:
            each = self.judge.originals[name]
            own = storage.fitted(each.shape)
            parts: list[list[Tensor]] = [[] for _ in own.parts(each.shape)]
            for part, values in own.encode(each.blocks(), each.shape, name):
                parts[part].append(torch.from_numpy(values.reshape(-1).copy()))
            stored = own.decode([torch.cat(part).numpy() for part in parts], each.shape)
            found[name] = Given(name, stored.half())
        return found


def main(part: str, checkpoint: str, *texts: str) -> None:
    alone()
    model = Model(load_recipe("smollm2-135m"), open_checkpoint(checkpoint), list(map(Path, texts)))
    started = time.process_time()
    found = PARTS[part](model)
    print(json.dumps({part: found, "seconds": {part: time.process_time() - started}}))


def of_coremltools(model: Model) -> dict[str, Any]:
    """Matrices of the layers; at 4 bits those and the table."""
    found: dict[str, Any] = {}
    originals = model.judge.originals
    for words, make in {
        "3 bits": lambda values: coremltools_palettes(values, 3),
        "4 bits": lambda values: coremltools_palettes(values, 4),
        "int4 for blocks of 32": lambda values: coremltools_integers(values, 4, 32),
        "6 bits": lambda values: coremltools_palettes(values, 6),
        "int8": lambda values: coremltools_integers(values, 8, 0),
    }.items():
        started = time.process_time()
        made: dict[str, Weight] = {
            name: Given(name, torch.from_numpy(make(originals[name].read().half().numpy())).half())
            for name in model.names
        }
        seconds = time.process_time() - started
        storage = PLAIN[words]
        found[words] = {"bits": model.bits(storage, model.names), **model.judge(made), "seconds": seconds}
        if words == "4 bits":
            table = torch.from_numpy(make(originals[TABLE_NAME].read().half().numpy()))
            whole = {"bits": model.bits(storage, [*model.names, TABLE_NAME])}
            found["4 bits, the table too"] = {
                **whole,
                **model.judge({**made, TABLE_NAME: Given(TABLE_NAME, table.half())}),
            }
    return found


def of_plain(model: Model) -> dict[str, Any]:
    found: dict[str, Any] = {"unchanged": {"bits": 16.0, **model.judge({})}}
    for words, storage in PLAIN.items():
        made = model.encoded(storage, model.names)
        found[words] = {"bits": model.bits(storage, model.names), **model.judge(made)}
        if words == "4 bits":
            whole = {**made, **model.encoded(storage, [TABLE_NAME])}
            bits = model.bits(storage, [*model.names, TABLE_NAME])
            found["4 bits, the table too"] = {"bits": bits, **model.judge(whole)}
    return found


def of_searched(model: Model) -> dict[str, Any]:
    """Fitted to all of the text, from which the search predicts as well."""
    recipe = calibrated(model.recipe, Calibration())
    windows = default_windows(recipe, model.checkpoint, SEEN * WINDOW)
    with temporary_folder() as folder, threads() as own:
        kept = Kept(folder)
        everything = predict(recipe, model.checkpoint, windows, kept, own)
        layers, whole = of_layers(everything), of_layers(everything, table=True)
        weights = sum(each.weights for each in whole)

        def with_table(words: str, bits: float) -> dict[str, Any]:
            return {words: measured(within_bits(whole, bits * weights), whole, kept, model.judge)}

        return {
            "uniform": of_uniform(layers, kept, model.judge),
            "search": of_search(layers, kept, model.judge, BUDGETS),
            "whole": {
                "4 bits, the table 6 bits": measured(uniform(whole, FOUR, SIX), whole, kept, model.judge),
                "4 bits, the table too": measured(uniform(whole, FOUR), whole, kept, model.judge),
                **{k: v for bits in WHOLE for k, v in with_table(f"search at {bits:g}", bits).items()},
            },
        }


def of_ingredients(model: Model) -> dict[str, Any]:
    """Palettes of 4 bits, a step of the fit after the other, and int4 for blocks of 32 with all of them."""
    windows = default_windows(model.recipe, model.checkpoint, SEEN * WINDOW)
    four = Palette(BITS, 16)
    variants: dict[str, Callable[[Statistics], tuple[Storage, Statistics, bool, bool]]] = {
        "weighted by importance": lambda s: (four, diagonal(s), False, False),
        "and feedback": lambda s: (four, s, False, False),
        "and descent": lambda s: (four, s, True, False),
        "and palettes fitted again": lambda s: (four, s, True, True),
        "int4 for blocks of 32": lambda s: (Integers(4, 32, True), s, True, True),
    }
    found: dict[str, Any] = {}
    with temporary_folder() as folder, threads() as own:
        kept = Kept(folder)
        seconds = fit_layers(model, windows, kept, own, list(variants.values()))
        for number, words in enumerate(variants):
            loss = model.judge(kept.weights({}, dict.fromkeys(model.names, number)))
            storage = Integers(BITS, 32, True) if words.startswith("int4") else four
            found[words] = {"bits": model.bits(storage, model.names), **loss, "seconds": seconds[number]}
    return found


def of_regrouped(model: Model) -> dict[str, Any]:
    """Palettes of 4 bits with all steps of a fit, the channels of MLPs in the order of their size."""
    recipe = model.recipe.model_copy(update={"compress": Compress(regroup=True)})
    moved, four = Model(recipe, model.checkpoint, model.texts), PLAIN["4 bits"]
    windows = default_windows(model.recipe, model.checkpoint, SEEN * WINDOW)
    with temporary_folder() as folder, threads() as own:
        kept = Kept(folder)
        (seconds,) = fit_layers(moved, windows, kept, own, [lambda s: (four, s, True, True)])
        return {**of_form(moved, four, kept.weights({}, dict.fromkeys(moved.names, 0))), "seconds": seconds}


def of_rotated(model: Model) -> dict[str, Any]:
    """Forms of 4 bits without a text and fitted, and what turning alone changes, on a SmolLM2 that is rotated."""
    with temporary_folder() as place:
        turned = Model(*rotated(model.checkpoint, place / "rotated"), model.texts)
        alike = [turned.judge.distance(name, model.judge) for name in NAMES]
        found: dict[str, Any] = {"from the model as it is": sum(alike) / len(alike)}
        for words in (INT4, "4 bits"):
            found[f"{words}, no text"] = of_form(turned, PLAIN[words], turned.encoded(PLAIN[words], turned.names))
        windows = default_windows(turned.recipe, turned.checkpoint, SEEN * WINDOW)
        forms = {words: PLAIN[words] for words in (INT4, "4 bits")}
        with temporary_folder() as folder, threads() as own:
            kept = Kept(folder)
            seconds = fit_layers(
                turned, windows, kept, own, [lambda s, form=form: (form, s, True, True) for form in forms.values()]
            )
            for number, (words, form) in enumerate(forms.items()):
                made = kept.weights({}, dict.fromkeys(turned.names, number))
                found[f"{words}, fitted"] = {**of_form(turned, form, made), "seconds": seconds[number]}
    return found


def of_form(model: Model, storage: Storage, weights: dict[str, Weight]) -> dict[str, Any]:
    return {"bits": model.bits(storage, model.names), **model.judge(weights)}


def of_tuned(model: Model) -> dict[str, Any]:
    """Palettes of 4 bits as a build fits and then tunes them."""
    windows = default_windows(model.recipe, model.checkpoint, SEEN * WINDOW)
    found: dict[str, Any] = {}
    for steps_taken in TUNED:
        said = {"default": FOUR_BITS, "rules": [{"match": TABLE, "kind": "float16"}], "tune": steps_taken}
        recipe = model.recipe.model_copy(update={"compress": Compress.model_validate(said)})
        started = time.process_time()
        with temporary_folder() as folder:
            made = calibrate(recipe, model.checkpoint, windows, folder)
            seconds = time.process_time() - started
            weights = {n: Given(n, each.storage.decode(each.read(), each.shape).half()) for n, each in made.items()}
        found[str(steps_taken)] = {"bits": model.bits(Palette(BITS, 16), model.names), **model.judge(weights)}
        found[str(steps_taken)]["seconds"] = seconds
    return found


def of_tokens(model: Model) -> dict[str, Any]:
    """Fitted to so many tokens: on the texts, and on the last of the windows that it was fitted to."""
    windows = default_windows(model.recipe, model.checkpoint, SEEN * WINDOW)
    found: dict[str, Any] = {}
    for count in (*FEWER, SEEN):
        own_text = Judge(model.recipe, model.checkpoint, {"own": [windows[count - 1]]})
        with temporary_folder() as folder, threads() as own:
            kept = Kept(folder)
            fit_layers(model, windows[:count], kept, own, [lambda s: (Palette(BITS, 16), s, True, True)])
            weights = kept.weights({}, dict.fromkeys(model.names, 0))
            found[str(count * WINDOW)] = {**model.judge(weights), "own": own_text(weights)["kl"]}
    return found


def fit_layers(
    model: Model,
    windows: list[list[int]],
    kept: Kept,
    own: Threads,
    variants: list[Callable[[Statistics], tuple[Storage, Statistics, bool, bool]]],
) -> list[float]:
    """Every variant of every matrix of the layers, by its number in `kept`; processor seconds of each variant."""
    of_text = TextPass(calibrated(model.recipe, Calibration()), model.checkpoint, windows, own)
    seconds = [0.0] * len(variants)
    for gathered in of_text.run():
        for name, statistics in gathered.statistics.items():
            if name not in model.names:
                continue
            each = of_text.weights[name]
            for number, variant in enumerate(variants):
                storage, given, descent, again = variant(statistics)
                storage = storage.fitted(each.shape)
                started = time.process_time()
                parts: list[list[Tensor]] = [[] for _ in storage.parts(each.shape)]
                with steps(descent, again):
                    for part, values in fit(each.blocks(), each.shape, storage, given, name, own):
                        parts[part].append(torch.from_numpy(values.reshape(-1).copy()))
                seconds[number] += time.process_time() - started
                kept.write(name, number, storage.decode([torch.cat(p).numpy() for p in parts], each.shape))
    return seconds


def diagonal(statistics: Statistics) -> Statistics:
    """Inputs as if they had nothing to do with each other: an error is then made up for nowhere."""
    return Statistics(torch.diag(statistics.hessian.diagonal()), statistics.tokens)


@contextmanager
def steps(descent: bool, again: bool) -> Iterator[None]:
    """A fit of palettes without its later steps."""
    with ExitStack() as stack:
        if not descent:
            stack.enter_context(patch.object(palettes, "PASSES", 0))
        if not again:
            stack.enter_context(patch.object(palettes, "_fit_again", lambda w, h, indices, entries, group: entries))
        yield


PARTS: dict[str, Callable[[Model], dict[str, Any]]] = {
    "coremltools": of_coremltools,
    "plain": of_plain,
    "search": of_searched,
    "ingredients": of_ingredients,
    "tuned": of_tuned,
    "tokens": of_tokens,
    "regrouped": of_regrouped,
    "rotated": of_rotated,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
