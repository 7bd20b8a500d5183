"""Stage `package`: the saved program, evaluated in float32, against our Decoder with the weights as stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.decoder.filling import Weight
from coreai_recipes.decoder.low_rank import Pair
from coreai_recipes.storage.compression import shown_name
from coreai_recipes.storage.reading import PackedWeight
from coreai_recipes.verification.answers import Asked, ask
from coreai_recipes.verification.asset_numbers import others_than_stored
from coreai_recipes.verification.calls import CallResult, describe_calls, plan_calls
from coreai_recipes.verification.figures import compare
from coreai_recipes.verification.report import Figures, StageResult, judge, number, skip
from coreai_recipes.verification.streamed import Agreeing, StreamedDecoder
from coreai_recipes.verification.subject import Subject
from coreai_recipes.verification.ties import TIE, agreeing_with

NAME = "package"
PSNR_FLOOR, SNR_MIN_FLOOR = 90.0, 70.0
DECODE_STEPS = 16
NOTHING_INSIDE = "Core ML shows no tensors inside the package; its logits are in package_float16"


def run(subject: Subject) -> StageResult:
    """Prefill whole and padded, decode, score where there is one; each hidden state and the logits are compared."""
    if subject.runtime == "coreml":
        return skip(NAME, NOTHING_INSIDE)
    (asked,) = asks(subject)
    answers, calls = ask(subject, asked, NAME).answers, asked.calls
    ties: list[str] = []
    figures = compare_answers(answers, expected_of(subject, answers, ties))
    detail = _detail(subject, describe_calls(calls))
    if ties:
        detail["tied_experts"] = {"choices": len(ties), "within": TIE, "first": ties[:10]}
    if subject.recipe.export.outputs == "ids":
        detail["wrong_ids"] = sum(answer.wrong_ids for answer in answers)
    found = judge(NAME, figures, PSNR_FLOOR, SNR_MIN_FLOOR, detail)
    strangers = [name for name, weight in subject.stored_weights.items() if _is_stranger(weight)]
    strangers += [] if subject.recipe.export.format == "coreml" else others_than_stored(subject)
    if strangers:
        figures_of = {"psnr_db": number(found.psnr_db), "snr_min_db": number(found.snr_min_db)}
        below = {"tensor": f"{shown_name(strangers[0])}, which is not the checkpoint's", **figures_of}
        return replace(found, passed=False, detail={**detail, "strangers": strangers, "first_below": below})
    return replace(found, passed=found.passed and not detail.get("wrong_ids"))


def asks(subject: Subject) -> list[Asked]:
    """The calls of the package, in float32, with every hidden state."""
    export, watched = subject.recipe.export, range(len(subject.recipe.model.layer_kinds) + 1)
    calls = plan_calls(export.functions.queries, len(subject.tokens.sequence), DECODE_STEPS, export.fills_calls)
    return [Asked("float32", tuple(calls), frozenset(f"hidden_{index}" for index in watched), peaks=subject.peaks)]


def _is_stranger(weight: Weight) -> bool:
    """Whether a weight that is read from the package itself, for it was fitted to a text, is that of another tensor."""
    return isinstance(weight, PackedWeight) and not weight.is_of_checkpoint()


@dataclass(frozen=True)
class Expected:
    """Our Decoder's hidden states (S, C), scaled as the package's stream is, and logits (S, V)."""

    hidden: list[Tensor]
    logits: Tensor


def compare_answers(answers: list[CallResult], expected: list[Expected]) -> list[Figures]:
    """The figures over all calls: what went into the first layer, each layer's output, the logits.

    Each call's own rows are compared with what is `expected` of it, so a position that was computed twice (by score)
    counts twice.
    """
    figures = []
    for index in range(len(expected[0].hidden)):
        name = f"layers.{index - 1}.output" if index else "embedding"
        pairs = []
        for answer, ours in zip(answers, expected, strict=True):
            x = answer.watched.get(f"hidden_{index}")
            if x is not None:
                # layers that share a cache are run for the last token of a prefill alone
                end = answer.call.position + answer.call.count
                pairs.append((ours.hidden[index][end - len(x) : end], x))
        if pairs:
            figures.append(compare(name, *(torch.cat(side) for side in zip(*pairs, strict=True))))
    rows = [ours.logits[a.first_row : a.first_row + len(a.logits)] for a, ours in zip(answers, expected, strict=True)]
    figures.append(compare("logits", torch.cat(rows), torch.cat([a.logits for a in answers])))
    return figures


def expected_of(
    subject: Subject, answers: list[CallResult], ties: list[str], low_rank: Mapping[str, Pair] | None = None
) -> list[Expected]:
    """What is expected of each call, with the products `low_rank` beside the Decoder's matrices. Among equal experts
    ours takes those that the package took; where it took others when it computed the last positions again, in `score`,
    ours is run again too."""
    taken = experts_taken(subject, [a for a in answers if a.call.function != "score"])
    again = experts_taken(subject, answers)
    usual = _run_decoder(subject, taken, ties, low_rank)
    if not ties and low_rank is None:
        subject.stored_logits = usual.logits
    same = all(torch.equal(one, other) for one, other in zip(taken.values(), again.values(), strict=True))
    scored = usual if same else _run_decoder(subject, again, ties, low_rank)
    return [scored if answer.call.function == "score" else usual for answer in answers]


def experts_taken(subject: Subject, answers: Sequence[CallResult]) -> dict[int, Tensor]:
    """By layer, the numbers of the experts that the last call of each position took, (S, top); -1 where none did."""
    found: dict[int, Tensor] = {}
    for answer in answers:
        end = answer.call.position + answer.call.count
        for layer, experts in answer.experts.items():
            none = torch.full((len(subject.tokens.sequence), experts.shape[1]), -1)
            found.setdefault(layer, none)[end - len(experts) : end] = experts
    return found


def _run_decoder(
    subject: Subject, taken: dict[int, Tensor], ties: list[str], low_rank: Mapping[str, Pair] | None
) -> Expected:
    """Our Decoder over the whole sequence, without caches: each hidden state (S, C) and the logits (S, V)."""
    decoder = StreamedDecoder(subject.recipe, subject.stored_weights, low_rank=low_rank)
    hidden: list[Tensor] = []
    total, scale = len(decoder.decoder.layers) + 1, subject.recipe.export.scale

    def keep(index: int, x: Tensor) -> None:
        hidden.append(scale * x)
        subject.progress(f"{NAME}: torch", index + 1, total)

    def agreeing(index: int) -> Agreeing:
        return lambda layer: agreeing_with(layer, taken.get(index), lambda tie: ties.append(f"layers.{index}, {tie}"))

    return Expected(hidden, decoder.run(subject.tokens.sequence, keep, agreeing))


def _detail(subject: Subject, calls: str) -> dict[str, Any]:
    length = len(subject.tokens.sequence)
    detail: dict[str, Any] = {"runtime": subject.runtime, "positions": length, "calls": calls}
    windows = subject.windows()
    if windows:
        unwrapped = [window for window in windows if length <= window]
        detail["wrapped"] = f"not the window of {unwrapped[0]}" if unwrapped else "every window"
    if not subject.fits_in_memory:
        detail["weights"] = "streamed"
    if subject.runs_dense:
        detail["decompressed"] = "once"
    return detail
