"""Stage `package_engine`: the saved program with the Neural Engine's habits, as far as they are known, against itself
in float16.

It fails on NaN, on infinity, and where another token is chosen than `package_float16` chooses. Habits whose figures no
source gives (the tables' knots) are run too: NaN and infinity are as bad there, their other answers are stated alone.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from coreai_recipes.evaluate.habits import HABITS
from coreai_recipes.verification.answers import Asked
from coreai_recipes.verification.calls import FunctionCall, describe_calls
from coreai_recipes.verification.figures import psnr, snr_min
from coreai_recipes.verification.report import StageResult, number, skip
from coreai_recipes.verification.stages.package_float16 import (
    FEWEST_STEPS,
    Run,
    affordable,
    asked_of,
    in_float16,
    plan,
    run_package,
)
from coreai_recipes.verification.subject import Subject
from coreai_recipes.verification.ties import Tie

NAME = "package_engine"
# Tables are another function for each activation: their figures are stated, for the knots are our choice.
STATED = ("act-lut",)
MOST_NAMED = 10


def run(subject: Subject) -> StageResult:
    if subject.runtime == "coreml":
        return skip(NAME, "Core ML has its own habits; package_float16 runs on it")
    halves = in_float16(subject)
    theirs = subject.as_stored() if subject.compresses else subject.reference()
    judged = run_package(subject, "engine", first_calls(halves.calls, affordable(subject, "engine")), STATED)
    tables = run_package(subject, "engine", first_calls(halves.calls, FEWEST_STEPS))
    ref = halves.logits[: len(judged.rows)]
    ties: list[Tie] = []
    others: list[Tie] = []
    for tie, error in parted(judged, halves, theirs[judged.rows]):
        (ties if tie.gap <= 2 * error else others).append(tie)
    nans = list(dict.fromkeys(judged.nans + tables.nans))
    overflowed = list(dict.fromkeys(judged.overflowed + tables.overflowed))
    detail: dict[str, Any] = {
        "compared_with": "package_float16",
        "habits": [habit for habit in HABITS if habit not in STATED],
        "engine": _describe(judged, ref),
        "with_tables": {"habits": list(STATED), **_describe(tables, halves.logits[: len(tables.rows)])},
        "nans": nans[:MOST_NAMED],
        "overflowed": overflowed[:MOST_NAMED],
        "ties": [str(tie) for tie in ties],
        "other_answers": [str(tie) for tie in others[:MOST_NAMED]],
    }
    same = psnr(ref, judged.logits), snr_min(ref, judged.logits)
    wrong = [f"{what} {found[0]}" for what, found in (("NaN in", nans), ("infinity in", overflowed)) if found]
    wrong += [f"another answer: {others[0]}"] if others and not wrong else []
    if wrong:
        detail["first_below"] = {
            "tensor": ", ".join(wrong), "psnr_db": number(same[0]), "snr_min_db": number(same[1])
        }  # fmt: skip
    return StageResult(NAME, not wrong, *same, None, detail)


def asks(subject: Subject) -> list[Asked]:
    """Those of the calls in float16 that are run again, with the engine's habits."""
    calls = plan(subject, affordable(subject, "rounded"))
    return [
        asked_of(subject, "engine", first_calls(calls, affordable(subject, "engine")), STATED),
        asked_of(subject, "engine", first_calls(calls, FEWEST_STEPS)),
    ]


def first_calls(calls: Sequence[FunctionCall], steps: int) -> list[FunctionCall]:
    """The prefill calls of a run in float16, and so many of its decode steps: what is run again gives the same rows."""
    prefill = [call for call in calls if call.function != "decode"]
    return prefill + [call for call in calls if call.function == "decode"][:steps]


def parted(engine: Run, halves: Run, theirs: Any) -> Iterator[tuple[Tie, float]]:
    """Where the engine chooses another token, with the error of float16 there: how far the logits that it has for these
    rows are from transformers' in float32 at most. What is closer than that on both sides float16 cannot tell apart."""
    ours = halves.logits[: len(engine.rows)]
    for row in (engine.logits.argmax(-1) != ours.argmax(-1)).nonzero().flatten().tolist():
        one, other = int(ours[row].argmax()), int(engine.logits[row].argmax())
        gap = float(ours[row, one] - ours[row, other])
        error = float((ours[row] - theirs[row]).abs().max())
        names = ("float16", "the engine")
        yield Tie(int(engine.rows[row]), (one,), (other,), gap if math.isfinite(gap) else math.inf, names), error


def _describe(run: Run, ref: Any) -> dict[str, Any]:
    return {
        "psnr_db": number(psnr(ref, run.logits)),
        "top_1": round((ref.argmax(-1) == run.logits.argmax(-1)).float().mean().item(), 4),
        "rows": len(run.rows),
        "calls": describe_calls(run.calls),
    }
