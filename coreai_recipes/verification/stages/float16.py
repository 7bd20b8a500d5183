"""Stage `package_float16`: the saved program in float16 against transformers in float32.

The evaluator runs it twice, `rounded` and `strict`; Core ML once, as the hardware does.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from coreai_recipes.evaluate.precision import Precision
from coreai_recipes.verification.calls import describe_calls, plan_calls, run_call
from coreai_recipes.verification.figures import psnr, snr_min
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.report import StageResult, number
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.subject import Subject

NAME = "package_float16"
Mode = Precision | Literal["coreml"]
ALLOWED_LOSS_DB = 3.0
# How many decode steps are affordable: as many as multiply this often in all, and never fewer than FEWEST_STEPS.
# Core ML is given the most.
PRODUCTS = {"rounded": 20e9, "strict": 4e9}
FEWEST_STEPS, MOST_STEPS = 8, 128


@dataclass(frozen=True)
class Run:
    """The logits of one mode at the positions `rows`, and what became infinite or NaN in it."""

    mode: Mode
    rows: Tensor
    logits: Tensor
    calls: str
    overflowed: list[str]


def run(subject: Subject) -> StageResult:
    """Passes when `rounded`, or Core ML, loses at most 3 dB more than transformers' own float16, and nothing overflows.

    `strict` must not overflow either; its figures are stated.
    """
    theirs32 = subject.reference_logits
    if theirs32 is None:
        theirs32 = subject.reference_logits = Reference(subject.recipe, subject.weights).run(subject.tokens.sequence)
    theirs16 = Reference(subject.recipe, subject.weights, torch.float16).run(subject.tokens.sequence)
    modes: tuple[Mode, ...] = ("coreml",) if subject.runtime == "coreml" else ("rounded", "strict")
    runs = [_run_package(subject, mode) for mode in modes]
    judged, *stated = runs
    ref = theirs32[judged.rows]
    floor = psnr(ref, theirs16[judged.rows]) - ALLOWED_LOSS_DB
    found, lowest = psnr(ref, judged.logits), snr_min(ref, judged.logits)
    overflowed = [f"{name} ({r.mode})" for r in runs for name in r.overflowed]
    detail: dict[str, Any] = {
        "runtime": subject.runtime,
        "compared_with": "transformers in float32",
        judged.mode: _describe(judged, theirs32, judged.logits),
        "transformers_float16": _describe(judged, theirs32, theirs16[judged.rows]),
        "overflowed": overflowed[:10],
    }
    for other in stated:
        theirs = _describe(other, theirs32, theirs16[other.rows])
        detail[other.mode] = {**_describe(other, theirs32, other.logits), "transformers_float16": theirs}
    if subject.runtime == "coreml":
        detail["compute_units"] = subject.recipe.export.compute_units
    if overflowed:
        detail["first_below"] = {"tensor": overflowed[0], "psnr_db": "-inf", "snr_min_db": "-inf"}
    elif found < floor:
        detail["first_below"] = {"tensor": "logits", "psnr_db": number(found), "snr_min_db": number(lowest)}
    return StageResult(NAME, found >= floor and not overflowed, found, lowest, floor, detail)


def _run_package(subject: Subject, mode: Mode) -> Run:
    ids = subject.tokens.sequence
    queries = subject.recipe.export.functions.queries
    if mode == "coreml":
        steps = MOST_STEPS
        program = open_program(subject, "rounded")
    else:
        steps = min(max(int(PRODUCTS[mode] / (subject.float32_bytes / 4)), FEWEST_STEPS), MOST_STEPS)
        queries = {name: size for name, size in queries.items() if name != "score"}  # stage `package` has it
        program = open_program(subject, mode)
    calls = plan_calls(queries, len(ids), steps)
    state = program.make_state()
    rows: list[int] = []
    logits = []
    overflowed: dict[str, None] = {}
    for done, call in enumerate(calls, 1):
        answer = run_call(program, state, ids, call, set())
        rows += range(answer.first_row, answer.first_row + len(answer.logits))
        logits.append(answer.logits)
        overflowed |= dict.fromkeys(getattr(program.function(call.function), "overflowed", ()))
        if mode == "coreml" and not answer.logits.isfinite().all():
            overflowed[f"logits of {call.function}"] = None
        subject.progress(f"{NAME}: {mode}", done, len(calls))
    return Run(mode, torch.tensor(rows), torch.cat(logits), describe_calls(calls), list(overflowed))


def _describe(run: Run, ref: Tensor, logits: Tensor) -> dict[str, Any]:
    ref = ref[run.rows]
    return {
        "psnr_db": number(psnr(ref, logits)),
        "snr_min_db": number(snr_min(ref, logits)),
        "top_1": round((ref.argmax(-1) == logits.argmax(-1)).float().mean().item(), 4),
        "rows": len(run.rows),
        "calls": run.calls,
    }
