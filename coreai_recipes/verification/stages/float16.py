"""Stage `package_float16`: the saved program in float16, `rounded` and `strict`, against transformers in float32."""

from dataclasses import dataclass
from typing import Any

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
ALLOWED_LOSS_DB = 3.0
# How many decode steps are affordable: as many as multiply this often in all, and never fewer than FEWEST_STEPS.
PRODUCTS = {"rounded": 20e9, "strict": 4e9}
FEWEST_STEPS, MOST_STEPS = 8, 128


@dataclass(frozen=True)
class Run:
    """The logits of one precision at the positions `rows`, and what became infinite or NaN in float16."""

    rows: Tensor
    logits: Tensor
    calls: str
    overflowed: list[str]


def run(subject: Subject) -> StageResult:
    """Passes when `rounded` loses at most 3 dB more than transformers' own float16, and nothing overflows in either."""
    theirs32 = subject.reference_logits
    if theirs32 is None:
        theirs32 = subject.reference_logits = Reference(subject.recipe, subject.weights).run(subject.tokens.sequence)
    theirs16 = Reference(subject.recipe, subject.weights, torch.float16).run(subject.tokens.sequence)
    rounded = _evaluate(subject, "rounded")
    strict = _evaluate(subject, "strict")
    floor = psnr(theirs32[rounded.rows], theirs16[rounded.rows]) - ALLOWED_LOSS_DB
    found = psnr(theirs32[rounded.rows], rounded.logits)
    overflowed = [f"{name} ({mode})" for mode, r in (("rounded", rounded), ("strict", strict)) for name in r.overflowed]
    detail: dict[str, Any] = {
        "compared_with": "transformers in float32",
        "rounded": _describe(rounded, theirs32, rounded.logits),
        "transformers_float16": _describe(rounded, theirs32, theirs16[rounded.rows]),
        "strict": {
            **_describe(strict, theirs32, strict.logits),
            "transformers_float16": _describe(strict, theirs32, theirs16[strict.rows]),
        },
        "overflowed": overflowed[:10],
    }
    if overflowed:
        detail["first_below"] = {"tensor": overflowed[0], "psnr_db": "-inf", "snr_min_db": "-inf"}
    elif found < floor:
        lowest = snr_min(theirs32[rounded.rows], rounded.logits)
        detail["first_below"] = {"tensor": "logits", "psnr_db": number(found), "snr_min_db": number(lowest)}
    passed = found >= floor and not overflowed
    return StageResult(NAME, passed, found, snr_min(theirs32[rounded.rows], rounded.logits), floor, detail)


def _evaluate(subject: Subject, precision: Precision) -> Run:
    ids = subject.tokens.sequence
    affordable = int(PRODUCTS[precision] / (subject.float32_bytes / 4))
    steps = min(max(affordable, FEWEST_STEPS), MOST_STEPS)
    queries = {name: size for name, size in subject.recipe.export.functions.queries.items() if name != "score"}
    calls = plan_calls(queries, len(ids), steps)
    program = open_program(subject, precision)
    state = program.make_state()
    rows, logits = [], []
    overflowed: dict[str, None] = {}
    for done, call in enumerate(calls, 1):
        answer = run_call(program, state, ids, call, set())
        rows.append(answer.first_row)
        logits.append(answer.logits)
        overflowed |= dict.fromkeys(getattr(program.function(call.function), "overflowed", ()))
        subject.progress(f"{NAME}: {precision}", done, len(calls))
    return Run(torch.tensor(rows), torch.cat(logits), describe_calls(calls), list(overflowed))


def _describe(run: Run, ref: Tensor, logits: Tensor) -> dict[str, Any]:
    ref = ref[run.rows]
    return {
        "psnr_db": number(psnr(ref, logits)),
        "snr_min_db": number(snr_min(ref, logits)),
        "top_1": round((ref.argmax(-1) == logits.argmax(-1)).float().mean().item(), 4),
        "rows": len(run.rows),
        "calls": run.calls,
    }
