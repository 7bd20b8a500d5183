"""Stage `compressed`: what the compression of weights costs, stated; a budget of the recipe is its floor.

Our Decoder in float32, with the weights as the saved package decompresses them, against transformers in float32 with
the checkpoint's, on text that no calibration has seen: no error of float16's arithmetic is in it, and stage `package`
holds the saved program against the same weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from coreai_recipes.calibration.backward import Backward
from coreai_recipes.calibration.curvature import ErrorCost
from coreai_recipes.decoder.filling import Weight, bind_weights
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.decoder.stacks import MODULES, build_stacks
from coreai_recipes.recipe.schema import MODEL
from coreai_recipes.storage.accounting import MeasuredWeight, account, measured
from coreai_recipes.storage.budget import bits_over, kl_over
from coreai_recipes.storage.compression import FLOAT16, Parameters, shown_name
from coreai_recipes.storage.parameters import raw_tables, stored_parameters
from coreai_recipes.storage.reading import StoredWeight, stored_weights
from coreai_recipes.verification.held_out import held_out_windows
from coreai_recipes.verification.loss import Loss, logits_of_decoder, logits_of_reference, measure_loss
from coreai_recipes.verification.report import StageResult, number, skip
from coreai_recipes.verification.subject import Subject

NAME = "compressed"
EMBEDDING = "embedding.weight"
PREDICTED = 2  # of the texts, by which each matrix's part is predicted


def run(subject: Subject) -> StageResult:
    if not subject.compresses:
        return skip(NAME, "no compression in this recipe")
    stacks = build_stacks(subject.recipe)
    stored, beside = stored_parameters(stacks), raw_tables(stacks)
    if subject.package is None and stored.calibrates:
        return skip(NAME, "weights that are fitted to a text are in a package alone")
    subject.close_packages()  # the model comes into memory
    weights = _weights(subject)
    windows, text = _windows(subject)
    loss = _measure(subject, weights, windows)
    # a table and the errors in it are held in float32
    costs = _predict(subject, weights, windows[:PREDICTED]) if subject.fits_in_memory else {}
    detail: dict[str, Any] = {
        "compared_with": "transformers in float32, with the checkpoint's weights",
        "text": text,
        **loss.to_json(NAME),
        "storage": stored.to_json(),
        "predicted_kl": round(sum(costs.values()), 6) if costs else None,
        "by_tensor": list(_table(subject, stored, weights, costs)),
        **({"for_host": list(_table(subject, beside, weights, costs))} if beside.shapes else {}),
    }
    over = [each for each in (kl_over(subject.recipe, loss.kl or 0.0), bits_over(subject.recipe, stored)) if each]
    if over:
        detail["over_budget"] = over
    return StageResult(NAME, not over, loss.psnr_db, loss.snr_min_db, None, detail)


def _weights(subject: Subject) -> dict[str, MeasuredWeight]:
    """Our Decoder's parameters as the package has them: what is read of one is told apart from the checkpoint's."""
    own = bind_weights(build_decoder(subject.recipe), subject.weights)
    return measured(subject.packaged_weights, own)


def _windows(subject: Subject) -> tuple[list[tuple[int, ...]], str]:
    """The held-out texts, or the tokens that were given, and what they are."""
    if subject.given_tokens is not None:
        return [subject.given_tokens], "as given"
    return held_out_windows(subject.weights, subject.recipe.model.vocab_size, subject.recipe.export.context)


def _measure(subject: Subject, weights: Mapping[str, Weight], windows: Sequence[tuple[int, ...]]) -> Loss:
    ours = logits_of_decoder(subject.recipe, weights)
    theirs = logits_of_reference(subject.recipe, subject.weights)
    done = 0

    def note() -> None:
        nonlocal done
        done += 1
        subject.progress(f"{NAME}: loss", done, len(windows))

    return measure_loss(windows, ours, theirs, note)


def _predict(
    subject: Subject, weights: Mapping[str, MeasuredWeight], windows: Sequence[tuple[int, ...]]
) -> dict[str, float]:
    """What each matrix alone is predicted to add to the KL divergence, by its shown name."""
    stored = stored_parameters([build_decoder(subject.recipe)])
    names = [n for n, shape in stored.shapes.items() if stored.compression.storage(n, shape) != FLOAT16]

    def note(step: str, done: int, total: int) -> None:
        subject.progress(f"{NAME}: {step}", done, total)

    def watch(name: str, rows: int, width: int) -> ErrorCost | None:
        return ErrorCost(_error(weights[name])) if name in names else None

    backward = Backward(build_decoder(subject.recipe), subject.weights, windows, watch, note)
    found = dict.fromkeys(names, 0.0)
    table: Tensor | None = None
    for _, costs in backward.run():
        for name, cost in costs.items():
            found[name] += cost.cost(backward.positions)
            table = cost.error.reshape(-1, cost.error.shape[-1]) if name == EMBEDDING else table
    if EMBEDDING in found:
        found[EMBEDDING] += backward.lookup_cost(_error(weights[EMBEDDING]) if table is None else table)
    return {shown_name(name): cost for name, cost in found.items()}


def _error(weight: MeasuredWeight) -> Tensor:
    own = weight.own.read().float()
    return weight.read().float().reshape(own.shape) - own


def _table(
    subject: Subject, stored: Parameters, weights: Mapping[str, MeasuredWeight], costs: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """A row for each tensor of weight.bin, or of what lies beside it."""
    found = {shown_name(name): weight for name, weight in weights.items()}
    for key, source in subject.sources.items():
        if key == MODEL:
            continue  # `weights` are its own
        held = stored_weights(subject.recipe, source, key, subject.package)
        plain = bind_weights(MODULES[key].build(subject.recipe), source)
        both = {name: weight for name, weight in held.items() if isinstance(weight, StoredWeight)}
        prefix = subject.recipe.stacks[key].prefix
        found |= {shown_name(prefix + name): weight for name, weight in measured(both, plain).items()}
    for done, row in enumerate(account(stored), 1):
        subject.progress(NAME, done, len(stored.shapes))
        weight = found.get(row["name"])
        kl = float(f"{costs[row['name']]:.4g}") if row["name"] in costs else None
        yield {**row, "psnr_db": None if weight is None else number(weight.psnr_db), "kl": kl}
