"""Stage `package`: the saved program, evaluated in float32, against our Decoder with the weights as stored."""

from typing import Any

import torch
from torch import Tensor

from coreai_recipes.verification.calls import Answer, describe_calls, plan_calls, run_call
from coreai_recipes.verification.figures import compare
from coreai_recipes.verification.report import Figures, StageResult, judge, skip
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.streamed import StreamedDecoder
from coreai_recipes.verification.subject import Subject

NAME = "package"
PSNR_FLOOR, SNR_MIN_FLOOR = 90.0, 70.0
DECODE_STEPS = 16
NOTHING_INSIDE = "Core ML shows nothing inside; its logits are in package_float16"


def run(subject: Subject) -> StageResult:
    """Prefill whole and padded, decode, score where there is one; each hidden state and the logits are compared."""
    if subject.runtime == "coreml":
        return skip(NAME, NOTHING_INSIDE)
    ids = subject.tokens.sequence
    hidden, logits = _run_decoder(subject)
    calls = plan_calls(subject.recipe.export.functions.queries, len(ids), DECODE_STEPS)
    program = open_program(subject, "float32")
    state = program.make_state()
    watched = {f"hidden_{index}" for index in range(len(hidden))}
    answers: list[Answer] = []
    for done, call in enumerate(calls, 1):
        answers.append(run_call(program, state, ids, call, watched))
        subject.progress(NAME, done, len(calls))
    scale = subject.recipe.export.residual_scale
    figures = compare_answers(answers, [scale * x for x in hidden], logits)
    return judge(NAME, figures, PSNR_FLOOR, SNR_MIN_FLOOR, _detail(subject, describe_calls(calls)))


def compare_answers(answers: list[Answer], hidden: list[Tensor], logits: Tensor) -> list[Figures]:
    """The figures over all calls: what went into the first layer, each layer's output, the logits.

    Each call's own rows are compared, so a position that was computed twice (by score) counts twice.
    """
    figures = []
    for index, ref in enumerate(hidden):
        name = f"layers.{index - 1}.output" if index else "embedding"
        found = [(a.call, a.watched[f"hidden_{index}"]) for a in answers if f"hidden_{index}" in a.watched]
        if found:
            # layers that share a cache are run for the last token of a prefill alone
            ends = [(call.position + call.count, len(x)) for call, x in found]
            rows = torch.cat([torch.arange(end - count, end) for end, count in ends])
            figures.append(compare(name, ref[rows], torch.cat([x for _, x in found])))
    answered = torch.cat([torch.arange(a.first_row, a.first_row + len(a.logits)) for a in answers])
    figures.append(compare("logits", logits[answered], torch.cat([a.logits for a in answers])))
    return figures


def _run_decoder(subject: Subject) -> tuple[list[Tensor], Tensor]:
    """Our Decoder over the whole sequence, without caches: each hidden state (S, C) and the logits (S, V)."""
    decoder = StreamedDecoder(subject.recipe, subject.weights, stored=True)
    hidden: list[Tensor] = []
    total = len(decoder.decoder.layers) + 1

    def keep(index: int, x: Tensor) -> None:
        hidden.append(x)
        subject.note_stream(x)
        subject.progress(f"{NAME}: torch", index + 1, total)

    return hidden, decoder.run(subject.tokens.sequence, keep)


def _detail(subject: Subject, calls: str) -> dict[str, Any]:
    length = len(subject.tokens.sequence)
    detail: dict[str, Any] = {"runtime": subject.runtime, "positions": length, "calls": calls}
    windows = subject.windows()
    if windows:
        unwrapped = [window for window in windows if length <= window]
        detail["wrapped"] = f"not the window of {unwrapped[0]}" if unwrapped else "every window"
    if not subject.fits_in_memory:
        detail["weights"] = "streamed"
    return detail
