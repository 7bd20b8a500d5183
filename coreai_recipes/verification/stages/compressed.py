"""Stage `compressed`: what the compression of weights costs, stated; a budget of the recipe is its floor.

Our Decoder in float32, with the weights as the saved package decompresses them, against transformers in float32 with
the checkpoint's, on text that no calibration has seen: no error of float16's arithmetic is in it, and stage `package`
holds the saved program against the same weights.
"""

from collections.abc import Iterator
from typing import Any

from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.storage.accounting import account
from coreai_recipes.storage.budget import bits_over, kl_over
from coreai_recipes.storage.compression import Parameters
from coreai_recipes.storage.parameters import stored_parameters
from coreai_recipes.verification.held_out import held_out_windows
from coreai_recipes.verification.loss import Loss, logits_of_decoder, logits_of_reference, measure_loss
from coreai_recipes.verification.report import StageResult, number, skip
from coreai_recipes.verification.subject import Subject

NAME = "compressed"


def run(subject: Subject) -> StageResult:
    if not subject.compresses:
        return skip(NAME, "no compression in this recipe")
    stored = stored_parameters(build_stacks(subject.recipe))
    if subject.package is None and stored.calibrates:
        return skip(NAME, "weights that are fitted to a text are in a package alone")
    loss, text = _measure(subject)
    detail: dict[str, Any] = {
        "compared_with": "transformers in float32, with the checkpoint's weights",
        "text": text,
        **loss.to_json(NAME),
        "storage": stored.to_json(),
        "tensors": list(_tensors(subject, stored)),
    }
    over = [each for each in (kl_over(subject.recipe, loss.kl or 0.0), bits_over(subject.recipe, stored)) if each]
    if over:
        detail["over_budget"] = over
    return StageResult(NAME, not over, loss.psnr_db, loss.snr_min_db, None, detail)


def _measure(subject: Subject) -> tuple[Loss, str]:
    """The loss on the held-out texts, or on the tokens that were given, and what they are."""
    windows, text = [subject.given_tokens or ()], "as given"
    if subject.given_tokens is None:
        windows, text = held_out_windows(
            subject.weights, subject.recipe.model.vocab_size, subject.recipe.export.context
        )
    ours = logits_of_decoder(subject.recipe, subject.packaged_weights)
    theirs = logits_of_reference(subject.recipe, subject.weights)
    done = 0

    def note() -> None:
        nonlocal done
        done += 1
        subject.progress(f"{NAME}: loss", done, len(windows))

    return measure_loss(windows, ours, theirs, note), text


def _tensors(subject: Subject, stored: Parameters) -> Iterator[dict[str, Any]]:
    """The table of every tensor, with progress: all are encoded once more."""
    rows = account(subject.recipe, stored, subject.sources, subject.weight_file)
    for done, row in enumerate(rows, 1):
        subject.progress(NAME, done, len(stored.shapes))
        yield {**row, "psnr_db": number(row["psnr_db"])}
