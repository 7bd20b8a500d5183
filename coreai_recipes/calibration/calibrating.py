"""A recipe's matrices encoded so that they lose least on a text, one layer in memory."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from coreai_recipes.calibration.fitting import fit
from coreai_recipes.calibration.passing import Gathered, TextPass, Windows
from coreai_recipes.calibration.text import read_windows
from coreai_recipes.calibration.threads import threads
from coreai_recipes.calibration.tuning import tune
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.compression import Compression, is_of_draft
from coreai_recipes.storage.fitted import Fitted
from coreai_recipes.storage.parameters import stored_parameters

Progress = Callable[[str, int, int], None]
STEP = "calibration"


def calibrate_on(
    recipe: Recipe,
    checkpoint: Checkpoint,
    tokenizer: Path,
    beside: Path,
    folder: Path,
    progress: Progress | None = None,
    draft: Checkpoint | None = None,
) -> tuple[dict[str, Fitted], tuple[str, ...]]:
    """As `calibrate`, on the text that the recipe names, by the tokenizer in a folder; and what is to be said of it.
    Files are seen from `beside`. Raises UserError for a text that is too short or unreadable."""
    if recipe.compress is None or recipe.compress.calibration is None:
        return {}, ()
    windows, notes = read_windows(recipe.compress.calibration, tokenizer, recipe.export.context, beside)
    found = calibrate(recipe, checkpoint, windows, folder, progress, draft)
    if recipe.compress.tune is not None and not found:
        notes += ("compress.tune: no matrix is fitted to a text, so nothing is tuned",)
    return found, notes


def calibrate(
    recipe: Recipe,
    checkpoint: Checkpoint,
    windows: Windows,
    folder: Path,
    progress: Progress | None = None,
    draft: Checkpoint | None = None,
) -> dict[str, Fitted]:
    """The blobs of every matrix that is fitted, by parameter name, in files of `folder`; the same for any number of
    threads. Others are encoded without a text: vectors, 8 bits and more, what no text reaches. Those of the recipe's
    draft are fitted where its checkpoint is given. With `compress.tune`, the model's norms are there too."""
    with threads() as own:
        of_text = TextPass(recipe, checkpoint, windows, own, draft)
        drafts = [] if of_text.drafting is None else [of_text.drafting.draft]
        wanted = stored_parameters([of_text.decoder, *drafts])
        total = len(of_text.decoder.stack) + 2 + len(drafts)
        found: dict[str, Fitted] = {}
        steps_done = iter(range(1, total + 1))
        for gathered in of_text.run():
            for name, shape, storage in _to_fit(wanted.compression, wanted.shapes, gathered):
                weight = of_text.weights[name]
                values = fit(weight.blocks(), shape, storage, gathered.statistics[name], weight.tensor, own)
                found[name] = Fitted.write(folder, weight.tensor, shape, storage, values)
            # While the next layer's are summed, nothing holds these: three matrices of 0.6 GB where 12,288 channels go
            # into an MLP's last. (`enumerate` would hold them, in the pair that it gave.)
            del gathered
            if progress is not None:
                progress(STEP, next(steps_done), total)
        steps = None if recipe.compress is None else recipe.compress.tune
        of_model = {name: each for name, each in found.items() if not is_of_draft(name)}
        if steps is not None and of_model:
            del of_text
            found |= tune(recipe, checkpoint, windows, of_model, folder, steps, own, progress)
    return found


def _to_fit(
    compression: Compression, shapes: Mapping[str, Shape], gathered: Gathered
) -> Iterator[tuple[str, Shape, Storage]]:
    for name in gathered.statistics:
        if compression.is_calibrated(name, shapes[name]):
            yield name, shapes[name], compression.storage(name, shapes[name])
