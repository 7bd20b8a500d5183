"""What a model loses by its states alone, where a recurrence is carried from call to call in float16.

transformers keeps such a state in float32, whatever it computes in. So that what is compared is ours and theirs in the
same float16, theirs is given its states back in float16 too, after the very calls that the package is asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coreai_recipes.primitives.carried import low_half
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.chunks import carried_of_packages
from coreai_recipes.verification.calls import FunctionCall, row_buffer
from coreai_recipes.verification.figures import psnr, snr_min
from coreai_recipes.verification.reference import Reference, keep_all
from coreai_recipes.verification.report import number
from coreai_recipes.verification.their_cache import make_cache, on_cache, recurrent_states

if TYPE_CHECKING:
    from coreai_recipes.verification.exchange import Exchange
    from coreai_recipes.verification.half_sums import SumsInFloat16
    from coreai_recipes.verification.subject import Subject

# transformers' calls with a cache are not its whole sequence in every family: they are believed where what they lose by
# float16 states is no more than this beyond what ours loses
BELIEVED_DB = 10.0


def recurrences(recipe: Recipe) -> dict[str, str | None]:
    """The carried tensors that are states of a recurrence, and those that have what float16 has lost of them. A
    convolution's inputs are none: they are float16 before they are kept."""
    carried, found = carried_of_packages(recipe), dict[str, str | None]()
    for name, spec in carried.items():
        low = low_half(spec.tensor).name + name.removeprefix(spec.tensor.name)
        if spec.role == "recurrence" and name not in found.values():
            found[name] = low if low in carried else None
    return found


def in_float16(carried: Mapping[str, Tensor], states: Mapping[str, str | None]) -> dict[str, Tensor]:
    """What is carried, the `states` as one float16 or two keep them."""
    found = dict(carried)
    for name, low in states.items():
        whole = carried[name] if low is None else carried[name] + carried[low]
        found[name] = whole.half().float()
        if low is not None:
            found[low] = (whole - found[name]).half().float()
    return found


@dataclass(frozen=True)
class StateLoss:
    """Figures of the package in float32 but for its states, against our Decoder with the same weights.

    `theirs_db` is that of transformers in float32 but for its states, against its whole sequence, and `theirs16_db` of
    its float16, whose logits (rows, V) are `theirs16`; None where `not_compared` says why.
    """

    psnr_db: float
    snr_min_db: float
    top_1: float
    theirs_db: float | None = None
    theirs16_db: float | None = None
    theirs16: Tensor | None = None
    not_compared: str | None = None

    def to_json(self) -> dict[str, Any]:
        ours = {"psnr_db": number(self.psnr_db), "snr_min_db": number(self.snr_min_db), "top_1": round(self.top_1, 4)}
        theirs = {"psnr_db": self.theirs_db, "float16_psnr_db": self.theirs16_db}
        if self.not_compared is not None:
            return {**ours, "transformers": {"not_compared": self.not_compared}}
        return {**ours, "transformers": {name: number(value) for name, value in theirs.items() if value is not None}}


def measure_states(
    subject: "Subject",
    calls: Sequence[FunctionCall],
    rows: Tensor,
    ours: Tensor,
    theirs32: Tensor,
    exchange: "Exchange | None",
    sums: "SumsInFloat16 | None" = None,
) -> StateLoss:
    """`ours` are the package's logits (rows, V) in float32 but for its states, `theirs32` transformers' (S, V); `sums`
    are in force while transformers' float16 runs."""
    ref, stored = theirs32[rows], subject.as_stored()[rows]
    same = (stored.argmax(-1) == ours.argmax(-1)).float().mean().item()
    found = StateLoss(psnr(stored, ours), snr_min(stored, ours), same)
    if not subject.fits_in_memory:
        return replace(found, not_compared="its model in float32 takes more than a third of what is free")
    theirs = psnr(ref, their_logits(subject, calls, torch.float32, exchange)[rows])
    if theirs < found.psnr_db - BELIEVED_DB:
        return replace(found, theirs_db=theirs, not_compared="its calls with a cache are not its whole sequence")
    theirs16 = their_logits(subject, calls, torch.float16, exchange, sums)[rows]
    return replace(found, theirs_db=theirs, theirs16_db=psnr(ref, theirs16), theirs16=theirs16)


def their_logits(
    subject: "Subject",
    calls: Sequence[FunctionCall],
    dtype: torch.dtype,
    exchange: "Exchange | None" = None,
    sums: "SumsInFloat16 | None" = None,
) -> Tensor:
    """transformers' logits (S, V) in `dtype`, float32 here, of these calls one after another, its recurrent states
    rounded to float16 wherever the package's are. The whole model is in memory."""
    model: Any = Reference(subject.recipe, subject.weights, dtype, exchange, sums).fill_all()
    in_halves = subject.recipe.export.recurrent_state == "two_float16"
    cache, ids = make_cache(model), torch.tensor([subject.tokens.sequence])
    logits = []
    with torch.inference_mode(), sums or nullcontext():
        for call, is_rounded in zip(calls, rounded_before(subject.recipe, calls), strict=True):
            for state in recurrent_states(cache) if is_rounded else ():
                high = state.half().float()
                state.copy_(high + (state - high).half() if in_halves else high)
            part = ids[:, call.position : call.position + call.count]
            given = {**on_cache(model, cache, call.position, call.count), **keep_all(model, call.count)}
            found = model(input_ids=part, use_cache=True, **given).logits
            logits.append(found[0].float())
    return torch.cat(logits)


def rounded_before(recipe: Recipe, calls: Sequence[FunctionCall]) -> Iterator[bool]:
    """Whether states are put into float16 before each call: always, or where a program with a buffer commits."""
    buffer = row_buffer(recipe)
    if buffer is None:
        yield from (True for _ in calls)
        return
    for call in calls:
        base, buffer.base = buffer.base, buffer.to_commit(call.position, call.count)
        yield buffer.base > base
