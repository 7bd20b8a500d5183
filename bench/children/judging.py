"""What weights lose on windows of text, and coremltools' weights of a matrix: shared by what measures compression."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.calibration.passing import folded_decoder
from coreai_recipes.calibration.text import read_windows
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight, bind_weights
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import Calibration, Compress
from coreai_recipes.verification.loss import Loss, Window, logits_of_decoder, measure_loss

WINDOW = 512
GROUP = 16  # channels that share a palette


@dataclass(frozen=True)
class Given:
    """A parameter in memory."""

    tensor: str
    values: Tensor

    def blocks(self) -> Iterator[Tensor]:
        yield self.values.float()

    def read(self) -> Tensor:
        return self.values.float()

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        return self.values[list(rows)].float()


class Judge:
    """Windows of named texts, and the logits of our Decoder with the checkpoint's own weights, float32.

    `recipe verify` holds that decoder against transformers.
    """

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint, texts: Mapping[str, Sequence[Window]]) -> None:
        self.recipe, self.texts = recipe, texts
        decoder = folded_decoder(recipe)
        self.form = decoder.form
        self.originals = bind_weights(decoder, checkpoint)
        theirs = logits_of_decoder(recipe, self.originals, self.form)
        self._references = {name: [theirs(window) for window in windows] for name, windows in texts.items()}

    def __call__(self, weights: Mapping[str, Weight]) -> dict[str, Any]:
        """What `weights` in place of the checkpoint's lose: the mean of the texts, and of each."""
        ours = logits_of_decoder(self.recipe, {**self.originals, **weights}, self.form)
        found = {}
        for name, windows in self.texts.items():
            given = iter(self._references[name])
            found[name] = _figures(measure_loss(windows, ours, lambda _, given=given: next(given)))  # type: ignore[misc]
        if len(found) == 1:
            return next(iter(found.values()))
        mean = {key: sum(each[key] for each in found.values()) / len(found) for key in ("kl", "top_1")}
        nats = sum(math.log(each["perplexity"]) for each in found.values()) / len(found)
        return {**mean, "perplexity": math.exp(nats), "texts": found}

    def distance(self, name: str, other: "Judge") -> float:
        """The KL divergence of this model's own logits from another's, on the windows of a text that both have."""
        own, theirs = iter(self._references[name]), iter(other._references[name])
        return measure_loss(self.texts[name], lambda _: next(own), lambda _: next(theirs)).kl or 0.0


def _figures(loss: Loss) -> dict[str, float]:
    return {"kl": loss.kl or 0.0, "top_1": loss.top_1 or 0.0, "perplexity": loss.perplexity}


def calibrated(recipe: Recipe, calibration: Calibration | None) -> Recipe:
    before = recipe.compress or Compress()
    return recipe.model_copy(update={"compress": before.model_copy(update={"calibration": calibration})})


def default_windows(recipe: Recipe, checkpoint: Checkpoint, tokens: int) -> list[list[int]]:
    """Of the text that weights are fitted to by default."""
    with temporary_folder() as folder:
        checkpoint.write_tokenizer(folder)
        return read_windows(Calibration(tokens=tokens), folder, recipe.export.context)[0]


def coremltools_palettes(values: NDArray[np.float16], bits: int) -> NDArray[np.float32]:
    """What coremltools' palettizer makes of a matrix, by the function that it calls for each."""
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    made = palettize_weights.blockwise_compress(values, "KMEANS", bits, [GROUP] + [0] * (values.ndim - 1))
    return np.asarray(values if made is None else palettize_weights.decompress(made), np.float32)


def coremltools_integers(values: NDArray[np.float16], bits: int, block: int) -> NDArray[np.float32]:
    """The same of its quantiser: a scale for `block` weights of a row, or for the row where that is 0."""
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights

    blocks = [1, block] + [0] * (values.ndim - 2)
    made = linear_quantize_weights.blockwise_compress(values, bits, "LINEAR_SYMMETRIC", True, blocks)
    return np.asarray(values if made is None else linear_quantize_weights.decompress(made), np.float32)


def read_text(path: Path, recipe: Recipe, checkpoint: Checkpoint, windows: int) -> list[list[int]]:
    """The first windows of a file, one after the other."""
    from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

    with temporary_folder() as folder:
        checkpoint.write_tokenizer(folder)
        ids = BundleTokenizer(folder).encode(path.read_text())
    return [ids[start : start + WINDOW] for start in range(0, windows * WINDOW, WINDOW)]


def alone() -> None:
    """One thread, so that a processor second is one of work."""
    torch.set_num_threads(1)
