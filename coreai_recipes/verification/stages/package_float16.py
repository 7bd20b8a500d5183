"""Stage `package_float16`: the saved program in float16 against transformers in float32.

The evaluator runs it twice, `rounded` and `strict`; Core ML once, as the hardware does, and Core AI's runtime once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.decoder.states import owner_of, state_specs
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.answers import Asked, Mode, ask
from coreai_recipes.verification.calls import FunctionCall, describe_calls, plan_calls
from coreai_recipes.verification.exchange import Exchange
from coreai_recipes.verification.figures import psnr, snr_min
from coreai_recipes.verification.half_sums import SumsInFloat16
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.report import StageResult, number
from coreai_recipes.verification.stages.package import experts_taken
from coreai_recipes.verification.state_lengths import measure_lengths
from coreai_recipes.verification.state_loss import StateLoss, measure_states, recurrences
from coreai_recipes.verification.streamed import Agreeing, StreamedDecoder
from coreai_recipes.verification.subject import Subject
from coreai_recipes.verification.ties import TIE_IN_FLOAT16, Tie, agreeing_with

NAME = "package_float16"
AS_STORED = "transformers in float32 with the weights as stored"
OURS_AS_STORED = "our Decoder in float32 with the weights as stored, and the experts that the package took"
FIRST = "hidden_0"
ALLOWED_LOSS_DB = 3.0
# How many decode steps are affordable: as many as multiply this often in all, and never fewer than FEWEST_STEPS.
# Core ML is given the most.
PRODUCTS = {"rounded": 20e9, "strict": 4e9, "engine": 4e9}
FEWEST_STEPS, MOST_STEPS = 8, 128
# Core AI's runtime on Linux multiplies float16 matrices at 0.06 GFLOP/s: so many products take a minute.
FLOAT16_PRODUCTS = 2e9
SHOWN = {"coreml": "Core ML", "coreai": "Core AI"}
TOO_SLOW = "Core AI's runtime multiplies float16 matrices too slowly here for a context of this length"


@dataclass(frozen=True)
class Run:
    """The logits of one mode at the positions `rows`, what became infinite or NaN in it, and the experts that each
    layer took, where these are asked for."""

    mode: Mode
    rows: Tensor
    logits: Tensor
    calls: list[FunctionCall]
    overflowed: list[str]
    nans: list[str]
    experts: dict[int, Tensor] = field(default_factory=dict)


def run(subject: Subject) -> StageResult:
    """Passes when `rounded`, or Core ML, loses at most 3 dB more than transformers' own float16, and nothing overflows.

    Core AI's runtime on Linux is held against transformers' float16 with the sums of that runtime (`half_sums`).

    Where transformers' own float16 is not finite, it must be at least as near as transformers' own bfloat16, which has
    float32's end and three bits less: 18 dB below what float16 has where it holds a model.
    `strict` must not overflow either; its figures are stated. Compressed weights are another model's, whose loss is for
    stage `compressed` to say: transformers, in float32 and in float16, is then given these same weights.
    """
    ids, exchange = subject.tokens.sequence, subject.exchange() if subject.compresses else None

    def theirs(dtype: torch.dtype, sums: SumsInFloat16 | None = None) -> Tensor:
        return Reference(subject.recipe, subject.weights, dtype, exchange, sums).run(ids)

    theirs32 = subject.reference() if exchange is None else theirs(torch.float32)
    theirs16 = theirs(torch.float16, _sums(subject))
    if subject.runtime != "evaluator":
        mode = subject.runtime
        runs = [run_package(subject, mode, plan(subject, affordable(subject, mode)))]
    else:
        runs = [in_float16(subject), run_package(subject, "strict", plan(subject, affordable(subject, "strict")))]
    judged, *stated = runs
    ref = theirs32[judged.rows]
    states = _states(subject, judged, theirs32, exchange)
    of_theirs = theirs16[judged.rows] if states is None or states.theirs16 is None else states.theirs16
    floor = psnr(ref, of_theirs) - ALLOWED_LOSS_DB
    theirs_bfloat16 = None
    if not theirs16[judged.rows].isfinite().all():
        theirs_bfloat16 = theirs(torch.bfloat16)
        floor = psnr(ref, theirs_bfloat16[judged.rows])
    ties: list[str] = []
    of_ours = subject.compresses and bool(judged.experts)
    expected = _as_stored(subject, judged, ties) if of_ours else theirs32
    ref = expected[judged.rows]
    found, lowest = psnr(ref, judged.logits), snr_min(ref, judged.logits)
    overflowed = [f"{name} ({r.mode})" for r in runs for name in r.overflowed]
    detail: dict[str, Any] = {
        "runtime": subject.runtime,
        "compared_with": _compared_with(subject, of_ours),
        judged.mode: _describe(judged, expected, judged.logits),
        "transformers_float16": _describe(judged, theirs32, theirs16[judged.rows]),
        "overflowed": overflowed[:10],
    }
    if states is not None:
        lengths = measure_lengths(subject, f"{NAME}: states")
        detail["states"] = {**states.to_json(), **({} if lengths is None else {"after": lengths})}
    if subject.is_on_linux:
        detail["sums_in_float16"] = True
    if subject.runs_dense:
        detail["decompressed"] = "once"
    if theirs_bfloat16 is not None:
        detail["transformers_bfloat16"] = _describe(judged, theirs32, theirs_bfloat16[judged.rows])
    if ties:
        detail["tied_experts"] = {"choices": len(ties), "within": TIE_IN_FLOAT16, "first": ties[:10]}
    for other in stated:
        beside = _describe(other, theirs32, theirs16[other.rows])
        detail[other.mode] = {**_describe(other, expected, other.logits), "transformers_float16": beside}
    if subject.runtime == "coreml":
        detail["compute_units"] = subject.recipe.export.compute_units
    if overflowed:
        detail["first_below"] = {"tensor": overflowed[0], "psnr_db": "-inf", "snr_min_db": "-inf"}
    elif found < floor:
        detail["first_below"] = {"tensor": "logits", "psnr_db": number(found), "snr_min_db": number(lowest)}
    return StageResult(NAME, found >= floor and not overflowed, found, lowest, floor, detail)


def why_no_logits(subject: Subject) -> str | None:
    """Why the judge can give no logits in float16, or None."""
    if subject.runtime != "evaluator" and subject.recipe.export.outputs == "ids":
        return f"{SHOWN[subject.runtime]} shows no tensors inside the package, and the package returns ids"
    if subject.runtime == "coreai" and not affordable(subject, "coreai"):
        return TOO_SLOW
    return None


def _states(subject: Subject, judged: Run, theirs32: Tensor, exchange: Exchange | None) -> StateLoss | None:
    """What the states of a recurrence lose by themselves in the calls of a run, and what theirs do; None without."""
    if subject.runtime == "coreml" or not recurrences(subject.recipe):
        return None
    alone, sums = run_package(subject, "float32", judged.calls, float16_states=True), _sums(subject)
    return measure_states(subject, judged.calls, judged.rows, alone.logits, theirs32, exchange, sums)


def _sums(subject: Subject) -> SumsInFloat16 | None:
    return SumsInFloat16() if subject.is_on_linux else None


def _compared_with(subject: Subject, of_ours: bool) -> str:
    if not subject.compresses:
        return "transformers in float32"
    return OURS_AS_STORED if of_ours else AS_STORED


def _as_stored(subject: Subject, judged: Run, ties: list[str]) -> Tensor:
    """Our Decoder's logits in float32 with the package's weights. Among experts that float16 cannot tell apart it takes
    those that the package took; `ties` are told of each."""
    decoder = StreamedDecoder(subject.recipe, subject.stored_weights)

    def agreeing(index: int) -> Agreeing:
        def note(tie: Tie) -> None:
            ties.append(f"layers.{index}, {tie}")

        return lambda layer: agreeing_with(layer, judged.experts.get(index), note, TIE_IN_FLOAT16)

    return decoder.run(subject.tokens.sequence, lambda index, hidden: None, agreeing)


def in_float16(subject: Subject) -> Run:
    """The package in precision `rounded`, run once for all stages."""
    if subject.float16_run is None:
        subject.float16_run = run_package(subject, "rounded", plan(subject, affordable(subject, "rounded")))
    found: Run = subject.float16_run
    return found


def affordable(subject: Subject, mode: Mode) -> int:
    """How many decode steps a mode can be given."""
    if mode == "coreml":
        return MOST_STEPS
    if mode == "coreai":
        return int(FLOAT16_PRODUCTS / attention_products(subject.recipe))
    return min(max(int(PRODUCTS[mode] / (subject.float32_bytes / 4)), FEWEST_STEPS), MOST_STEPS)


def plan(subject: Subject, steps: int) -> list[FunctionCall]:
    """Calls over the whole text with so many decode steps. The evaluator's stage `package` has `score`, Core ML has it
    here."""
    queries, length = subject.recipe.export.functions.queries, len(subject.tokens.sequence)
    if subject.runtime == "evaluator":
        queries = {name: size for name, size in queries.items() if name != "score"}
    if subject.runtime == "coreai" and steps < length + queries["prefill"]:  # each token of a call costs a step
        return [FunctionCall("decode", position, 1, 1) for position in range(min(steps, MOST_STEPS, length))]
    return plan_calls(queries, length, min(steps, MOST_STEPS), subject.recipe.export.fills_calls)


def attention_products(recipe: Recipe) -> int:
    """Multiplications of a decode step's attention, over all rows of its states."""
    states, total = state_specs(recipe), 0
    for name in recipe.model.layer_kinds:
        heads = getattr(recipe.model.kinds[name].attention, "num_heads", 1)
        state = states.get(owner_of(recipe, name))
        total += 0 if state is None else 2 * heads * state.head_dim * state.rows
    return max(total, 1)


def run_package(
    subject: Subject,
    mode: Mode,
    calls: Sequence[FunctionCall],
    without: Sequence[str] = (),
    float16_states: bool = False,
) -> Run:
    """The package's answers to `calls`, from empty states. `without` names the engine's habits to be left out."""
    asked = replace(asked_of(subject, mode, calls, without), float16_states=float16_states)
    found = ask(subject, asked, f"{NAME}: {mode}")
    rows = [row for each in found.answers for row in range(each.first_row, each.first_row + len(each.logits))]
    logits, experts = torch.cat([each.logits for each in found.answers]), experts_taken(subject, found.answers)
    return Run(mode, torch.tensor(rows), logits, list(calls), found.overflowed, found.nans, experts)


def asks(subject: Subject) -> list[Asked]:
    """The package's calls in the evaluator's two precisions."""
    modes: tuple[Mode, ...] = ("rounded", "strict")
    found = [asked_of(subject, mode, plan(subject, affordable(subject, mode))) for mode in modes]
    if not recurrences(subject.recipe):
        return found
    return [*found, replace(found[0], mode="float32", watched=frozenset(), float16_states=True)]


def asked_of(subject: Subject, mode: Mode, calls: Sequence[FunctionCall], without: Sequence[str] = ()) -> Asked:
    """`without` names the engine's habits to be left out."""
    # what is inside is watched only where it is needed, and Core ML shows nothing
    watched = {FIRST} if subject.compresses and subject.chooses_experts and subject.runtime == "evaluator" else set()
    return Asked(mode, tuple(calls), frozenset(watched), tuple(without))


def _describe(run: Run, ref: Tensor, logits: Tensor) -> dict[str, Any]:
    ref = ref[run.rows]
    return {
        "psnr_db": number(psnr(ref, logits)),
        "snr_min_db": number(snr_min(ref, logits)),
        "top_1": round((ref.argmax(-1) == logits.argmax(-1)).float().mean().item(), 4),
        "rows": len(run.rows),
        "calls": describe_calls(run.calls),
    }
