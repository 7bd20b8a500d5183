"""What a model loses against another on text: KL divergence, top-1 and perplexity, summed up window by window."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import Weight
from coreai_recipes.decoder.low_rank import Pair, beside_matrices
from coreai_recipes.decoder.model import build_decoder, count_parameters, fill
from coreai_recipes.primitives.layer import PLAIN, Form
from coreai_recipes.primitives.projection import with_low_rank
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.calls import FunctionCall, run_call
from coreai_recipes.verification.exchange import Exchange
from coreai_recipes.verification.figures import divergence, psnr, snr_min
from coreai_recipes.verification.memory import fits
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.streamed import StreamedDecoder
from coreai_recipes.verification.subject import Subject

Window = Sequence[int]
Logits = Callable[[Window], Tensor]  # (S, V) in float32 of a window that starts from nothing


def logits_of_decoder(
    recipe: Recipe, weights: Mapping[str, Weight], form: Form = PLAIN, low_rank: Mapping[str, Pair] | None = None
) -> Logits:
    """Our Decoder in float32 with `weights` of that form and the products `low_rank` beside its matrices: whole in
    memory where it fits, else a layer at a time."""
    if not fits(4 * count_parameters(recipe)):
        streamed = StreamedDecoder(recipe, weights, form, low_rank)
        return lambda window: streamed.run(window, lambda index, hidden: None)
    decoder = build_decoder(recipe, form)
    fill(decoder, lambda name: weights[name].read())

    def run(window: Window) -> Tensor:
        with torch.inference_mode(), with_low_rank(decoder, beside_matrices(low_rank or {})):
            return decoder(torch.tensor([list(window)]))[0]  # type: ignore[no-any-return]

    return run


def logits_of_asset(recipe: Recipe, asset: Path) -> Logits:
    """Apple's runtime on the float32 twin of an .aimodel: by `score`, as many tokens a call as that takes, where there
    is one, else one a call."""
    program = open_program(Subject(recipe, {}, asset, runtime="coreai"), "float32")
    name, most = call_of(recipe)

    def run(window: Window) -> Tensor:
        program.reset()
        starts = range(0, len(window), most)
        calls = (FunctionCall(name, start, min(most, len(window) - start), most) for start in starts)
        return torch.cat([run_call(program, window, call, set(), recipe).logits for call in calls])

    return run


def call_of(recipe: Recipe) -> tuple[str, int]:
    """The function that gives the logits of each of its tokens, and how many those are."""
    functions = recipe.export.functions
    return ("decode", 1) if functions.score is None else ("score", functions.score)


def logits_of_reference(recipe: Recipe, checkpoint: Checkpoint, exchange: Exchange | None = None) -> Logits:
    """transformers in float32, with the checkpoint's weights or what `exchange` gives in their place."""
    reference = Reference(recipe, checkpoint, exchange=exchange)
    if fits(2 * 4 * count_parameters(recipe)):  # ours is there too
        reference.fill_all()
    return reference.run


@dataclass
class Loss:
    """`add` windows; figures are means over all of their positions. Without a reference only `perplexity` is known."""

    positions: int = 0
    predicted: int = 0  # tokens that follow another one in their window
    nats: list[Tensor] = field(default_factory=list)
    # of the logits, on the worst window
    psnr_db: float = math.inf
    snr_min_db: float = math.inf
    _agreeing: int = 0
    _surprise: float = 0.0
    _their_surprise: float = 0.0

    def add(self, window: Window, ours: Tensor, theirs: Tensor | None) -> None:
        """Logits (S, V) of one window."""
        self.positions += len(window)
        self.predicted += len(window) - 1
        self._surprise += surprise(ours, window)
        if theirs is not None:
            self._their_surprise += surprise(theirs, window)
            self.nats.append(divergence(theirs, ours))
            self.psnr_db = min(self.psnr_db, psnr(theirs, ours))
            self.snr_min_db = min(self.snr_min_db, snr_min(theirs, ours))
            self._agreeing += int((theirs.argmax(-1) == ours.argmax(-1)).sum())

    @property
    def kl(self) -> float | None:
        return float(torch.cat(self.nats).mean()) if self.nats else None

    @property
    def largest_kl(self) -> float | None:
        return float(torch.cat(self.nats).max()) if self.nats else None

    @property
    def top_1(self) -> float | None:
        return self._agreeing / self.positions if self.nats else None

    @property
    def perplexity(self) -> float:
        return _perplexity(self._surprise, self.predicted)

    @property
    def their_perplexity(self) -> float | None:
        return _perplexity(self._their_surprise, self.predicted) if self.nats else None

    def merged(self, other: "Loss") -> "Loss":
        """Of the windows of both."""
        return Loss(
            self.positions + other.positions,
            self.predicted + other.predicted,
            [*self.nats, *other.nats],
            min(self.psnr_db, other.psnr_db),
            min(self.snr_min_db, other.snr_min_db),
            self._agreeing + other._agreeing,
            self._surprise + other._surprise,
            self._their_surprise + other._their_surprise,
        )

    def to_json(self, ours: str) -> dict[str, Any]:
        """`ours` is what the perplexity of what was judged is called."""
        found: dict[str, Any] = {"positions": self.positions, "predicted": self.predicted}
        if self.kl is not None and self.largest_kl is not None and self.top_1 is not None:
            found |= {
                "kl": {"mean": round(self.kl, 6), "largest": round(self.largest_kl, 6)},
                "top_1": round(self.top_1, 4),
            }
        perplexity = {ours: _rounded(self.perplexity)}
        if self.their_perplexity is not None:
            perplexity["transformers"] = _rounded(self.their_perplexity)
        return {**found, "perplexity": perplexity}


def measure_loss(
    windows: Iterable[Window], ours: Logits, theirs: Logits | None, on_window: Callable[[], None] = lambda: None
) -> Loss:
    """`ours` against `theirs` on each window."""
    loss = Loss()
    for window in windows:
        loss.add(window, ours(window), None if theirs is None else theirs(window))
        on_window()
    return loss


def surprise(logits: Tensor, window: Window) -> float:
    """The nats of each token behind the first, by the logits (S, V) of those before it, summed up."""
    if len(window) < 2:
        return 0.0
    after = torch.tensor(list(window[1:]))
    return float(torch.nn.functional.cross_entropy(logits[:-1], after, reduction="sum"))


def _perplexity(nats: float, tokens: int) -> float:
    mean = nats / tokens if tokens else math.nan
    return math.exp(mean) if mean < 700 else math.inf  # NaN stays NaN


def _rounded(value: float) -> float | str:
    return round(value, 4) if math.isfinite(value) else str(value)
