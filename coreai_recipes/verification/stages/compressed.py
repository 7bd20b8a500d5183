"""Stage `compressed`: what the compression of weights costs, stated; a budget of the recipe is its floor.

Our Decoder in float32, with the weights that the package has, against transformers in float32 with the checkpoint's:
no error of float16's arithmetic is in it, and stage `package` holds the saved program against the same weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.decoder.draft import build_draft
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.storage.accounting import account
from coreai_recipes.storage.budget import bits_over, kl_over
from coreai_recipes.storage.compression import Parameters
from coreai_recipes.storage.parameters import stored_parameters
from coreai_recipes.verification.figures import divergence, psnr, snr_min
from coreai_recipes.verification.report import StageResult, number, skip
from coreai_recipes.verification.subject import Subject

NAME = "compressed"


def run(subject: Subject) -> StageResult:
    if not subject.compresses:
        return skip(NAME, "no compression in this recipe")
    theirs, ours, tokens = subject.reference(), subject.as_stored(), subject.tokens.sequence
    draft = build_draft(subject.recipe) if subject.recipe.draft else None
    stored = stored_parameters(build_decoder(subject.recipe), draft)
    nats = divergence(theirs, ours)
    detail: dict[str, Any] = {
        "compared_with": "transformers in float32, with the checkpoint's weights",
        "positions": len(theirs),
        "kl": {"mean": round(float(nats.mean()), 6), "largest": round(float(nats.max()), 6)},
        "top_1": round((theirs.argmax(-1) == ours.argmax(-1)).float().mean().item(), 4),
        "perplexity": {"compressed": perplexity(ours, tokens), "transformers": perplexity(theirs, tokens)},
        "storage": stored.to_json(),
        "tensors": list(_tensors(subject, stored)),
    }
    over = [each for each in (kl_over(subject.recipe, float(nats.mean())), bits_over(subject.recipe, stored)) if each]
    if over:
        detail["over_budget"] = over
    return StageResult(NAME, not over, psnr(theirs, ours), snr_min(theirs, ours), None, detail)


def _tensors(subject: Subject, stored: Parameters) -> Iterator[dict[str, Any]]:
    """The table of every tensor, with progress: all are encoded once more."""
    rows = account(subject.recipe, stored, subject.weights, subject.draft)
    for done, row in enumerate(rows, 1):
        subject.progress(NAME, done, len(stored.shapes))
        yield {**row, "psnr_db": number(row["psnr_db"])}


def perplexity(logits: Tensor, tokens: tuple[int, ...]) -> float:
    """Of each token behind the first, by the logits (S, V) of those before it."""
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    return round(float(loss.exp()), 4)
