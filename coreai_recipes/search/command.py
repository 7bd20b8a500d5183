"""What `recipe compress` does with its words: a budget, a recipe, a text to learn from, a file."""

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coreai_recipes.bundle.adapting import with_adapters
from coreai_recipes.bundle.sources import find_checkpoint
from coreai_recipes.calibration.text import folder_of, read_windows
from coreai_recipes.decoder.filling import settle_head
from coreai_recipes.errors import UserError
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe import load_resolved
from coreai_recipes.recipe.importing.writing import write_recipe
from coreai_recipes.recipe.schema import Calibration, Compress, Recipe
from coreai_recipes.search.predicting import Measuring
from coreai_recipes.search.searching import Budget, Progress, Searched, check_bits, search
from coreai_recipes.storage.source import without_source

MOST_WINDOWS = 12  # of the calibration text: more make no better prediction, and take as much longer
FEWEST_WINDOWS = 2
WIDTH = 110


def read_budget(text: str) -> Budget:
    """`4.2` or `kl=0.1`. Raises UserError for anything else."""
    is_kl = text.startswith("kl=")
    try:
        value = float(text.removeprefix("kl="))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--budget {text}: must be bits per weight, as in 4.2, or nats, as in kl=0.1")
    return Budget(kl=value) if is_kl else Budget(bits=value)


def run_search(
    source: str,
    budget: Budget,
    checkpoint: str | None,
    overrides: Sequence[str],
    out: Path | None,
    progress: Progress | None,
    measuring: Measuring | None = None,
) -> tuple[Searched, tuple[str, ...], str]:
    """What was found, what is to be said of the text that it was learnt from, and the recipe as text.

    Raises UserError where that cannot be, before a weight is read.
    """
    if out is not None and os.path.lexists(out):
        raise UserError(f"{out}: already exists; choose another name with --out")
    if out is not None and not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}: create it first")
    resolved = load_resolved(source, overrides)
    recipe = resolved.recipe
    found = with_adapters(recipe, find_checkpoint(recipe, checkpoint))
    recipe, note = settle_head(recipe, found)
    recipe = without_source(recipe)  # every matrix gets a form here, whatever the checkpoint has it in
    check_bits(recipe, budget)
    said = Calibration() if recipe.compress is None else recipe.compress.calibration
    before = Compress() if recipe.compress is None else recipe.compress
    recipe = recipe.model_copy(update={"compress": before.model_copy(update={"calibration": said})})
    with temporary_folder() as folder:
        found.write_tokenizer(folder)
        windows, notes = read_windows(said or Calibration(), folder, recipe.export.context, folder_of(resolved))
    if len(windows) < FEWEST_WINDOWS:
        raise UserError(
            f"compress.calibration: {len(windows)} window of {len(windows[0])} tokens: one is searched on and another "
            "held out; give more text, or more `tokens`"
        )
    result = search(recipe, found, windows[:MOST_WINDOWS], budget, progress, measuring)
    if out is not None:
        result = replace(result, recipe=_texts_from(result.recipe, folder_of(resolved), out.parent))
    return result, (*((note,) if note else ()), *notes), recipe_of(result)


def _texts_from(recipe: Recipe, before: Path, after: Path) -> Recipe:
    """The recipe with the files of its text as they are seen from another folder."""
    compress = recipe.compress
    if compress is None or compress.calibration is None or isinstance(compress.calibration.text, str):
        return recipe
    names = [os.path.relpath(before / name, after) for name in compress.calibration.text]
    calibration = compress.calibration.model_copy(update={"text": names})
    return recipe.model_copy(update={"compress": compress.model_copy(update={"calibration": calibration})})


def recipe_of(found: Searched) -> str:
    """The recipe's text, below what was decided."""
    heading = []
    for line in (f"By `recipe compress --budget {found.budget.words}`:", *found.lines()):
        heading += textwrap.wrap(line, WIDTH)
    return write_recipe(found.recipe, heading, {})


def write_recipe_file(path: Path, text: str) -> None:
    """Raises UserError where there is a file or none can be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: already exists; choose another name with --out") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from None
