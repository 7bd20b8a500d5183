"""Stage `torch`: our Decoder in float32 against transformers in float32, layer by layer on the same hidden states."""

from typing import Any

from torch import Tensor

from coreai_recipes.verification.figures import compare
from coreai_recipes.verification.greedy import TIE_GAP, TOKENS, compare_greedy
from coreai_recipes.verification.memory import needs
from coreai_recipes.verification.reference import LayerRecord, Reference
from coreai_recipes.verification.report import Figures, StageResult, judge, number
from coreai_recipes.verification.streamed import StreamedDecoder, by_position, channels_first
from coreai_recipes.verification.subject import Subject
from coreai_recipes.verification.ties import TIE, Tie, following

NAME = "torch"
PSNR_FLOOR, SNR_MIN_FLOOR = 100.0, 80.0


def run(subject: Subject) -> StageResult:
    """q and k after the rotary, the attention branch and the output of every layer, the logits, and greedy text."""
    tokens = subject.tokens
    ties: list[str] = []
    figures = compare_layers(subject, ties)
    greedy = _greedy(subject, ties)
    detail = {
        "positions": len(tokens.sequence),
        "tokens": tokens.origin,
        "lowest": _lowest(figures),
        "greedy": greedy,
        **({"tied_experts": {"choices": len(ties), "within": TIE, "first": ties[:10]}} if ties else {}),
    }
    result = judge(NAME, figures, PSNR_FLOOR, SNR_MIN_FLOOR, detail)
    if result.passed and greedy.get("equal") is False:
        return StageResult(NAME, False, result.psnr_db, result.snr_min_db, result.floor_db, result.detail)
    return result


def compare_layers(
    subject: Subject, ties: list[str] | None = None, ours: StreamedDecoder | None = None
) -> list[Figures]:
    """The figures in the order of computation; each of our layers, of the subject's checkpoint unless `ours` are given,
    is given what transformers' was given.

    `ties` takes the places where ours and transformers chose differently among equal experts.
    """
    tied: list[str] = [] if ties is None else ties
    ids = subject.tokens.sequence
    reference = Reference(subject.recipe, subject.weights)
    ours = ours or StreamedDecoder(subject.recipe, subject.weights)
    embedded = by_position(ours.begin(ids))
    layers, streams = len(reference.layers), subject.recipe.model.streams
    figures: list[Figures] = []
    last: Tensor | None = None

    def look(theirs: LayerRecord) -> None:
        nonlocal last

        def note(tie: Tie) -> None:
            tied.append(f"layers.{theirs.index}, {tie}")

        if theirs.index == 0:
            # our layers are given transformers' states, so nothing else would see a wrong embedding; listed when it is
            first = compare("embedding", theirs.input, embedded)
            figures.extend([first] if first.is_below(PSNR_FLOOR, SNR_MIN_FLOOR) else [])
        found = ours.run_layer(
            theirs.index, channels_first(theirs.input, streams), lambda layer: following(layer, theirs.choice, note)
        )
        compared = theirs.compared().items()
        # a layer that shares another's cache has no keys of its own
        figures.extend(
            compare(f"layers.{theirs.index}.{name}", ref, found[name]) for name, ref in compared if name in found
        )
        last = theirs.output
        subject.progress(NAME, theirs.index + 1, layers)

    subject.reference_logits = reference.run(ids, look)
    if last is not None:
        figures.append(compare("logits", subject.reference_logits, ours.logits(channels_first(last, streams))))
    return figures


def _greedy(subject: Subject, ties: list[str]) -> dict[str, Any]:
    if not subject.fits_in_memory:
        return {"skipped": needs(subject.float32_bytes)}
    prompts = subject.tokens.prompts
    parted = compare_greedy(
        subject.recipe,
        subject.weights,
        prompts,
        lambda done: subject.progress(f"{NAME}: greedy", done, len(prompts)),
        ties.append,
    )
    wrong = [place for place in parted if not place.is_tie]
    return {
        "equal": not wrong,
        "prompts": len(prompts),
        "tokens": TOKENS,
        "ties": [str(place) for place in parted if place.is_tie],
        "tie_gap": TIE_GAP,
        "not_equal": [str(place) for place in wrong],
    }


def _lowest(figures: list[Figures]) -> dict[str, Any]:
    """For each sort of tensor the lowest figures over all layers."""
    sorts: dict[str, list[Figures]] = {}
    for found in figures:
        sorts.setdefault(found.tensor.rpartition(".")[2], []).append(found)
    return {
        sort: {
            "psnr_db": number(min(f.psnr_db for f in group)),
            "snr_min_db": number(min(f.snr_min_db for f in group)),
        }
        for sort, group in sorts.items()
    }
