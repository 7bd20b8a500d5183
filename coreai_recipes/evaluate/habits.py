"""What the Neural Engine does differently from IEEE's float16, as data: precision `engine` has a switch for each.

A leaf. P is arXiv 2606.22283 (github sbryngelson/ane-guide; measured on an M1 unless it says otherwise, on the private
route), C is john-rocky/CoreML-LLM (iPhone 17 Pro). The ids are those of the rules that look for programs that meet it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from coreai_recipes.evaluate.errors import EvaluationError


@dataclass(frozen=True)
class Habit:
    """One habit: what is done, who saw it and where, how sure that is, and what of it no source gives."""

    about: str
    source: str
    chips: str
    confidence: str
    ours: str | None = None


HABITS: dict[str, Habit] = {
    "mac-32768": Habit(
        "a result of conv, linear, matmul, einsum or attention at or beyond 32,768 is infinite (32,752 passes)",
        "P 3, Saturation hazard",
        "M1",
        "one good source",
        "only whole sums are held against it: in which order partial sums are taken is not known",
    ),
    "div-sub": Habit(
        "x / y is x times the reciprocal of y in float16, whose subnormals are 0: so for y beyond 16,384",
        "C; P 35 has a native division since A13",
        "iPhone",
        "disputed",
    ),
    "rsqrt-0": Habit(
        "a subnormal operand of rsqrt, its epsilon added, is 0, and rsqrt infinite", "C", "iPhone", "one good source"
    ),
    "nan-logic": Habit(
        "NaN is +inf; inf - inf and the roots and logarithms of negative numbers are 0",
        "P 3, Edge behavior; FluidAudio#679",
        "all",
        "P's sweep",
        "0 x inf stays NaN, and so +inf: P saw 0, which would hide the fault that it comes of",
    ),
    "act-lut": Habit(
        "gelu, silu, sigmoid and tanh are linear between 33 knots, and their asymptotes beyond; silu(0) = -0.001259, "
        "gelu(0) = -0.000543",
        "P 3, Activation functions; P 25",
        "all",
        "P's sweep",
        "equal knots over [-8, 8], on the function but for those at 0: P says how many there are, not where",
    ),
    "slice-w4094": Habit(
        "a slice with an offset on the last axis makes values beyond 4,094 infinite",
        "P 3, Saturation hazard",
        "M1, M2",
        "P's sweep",
    ),
    "wide-sum": Habit(
        "sums inside an operation are float32; without it they are float16, as in precision `strict`",
        "P 3, Wide accumulator",
        "all",
        "P's sweep",
        "the first stage, four lanes rounded to float16, is left out",
    ),
}


def habits_without(left_out: Iterable[str]) -> frozenset[str]:
    """The habits in force. Raises EvaluationError for those that there are not."""
    out = frozenset(left_out)
    unknown = sorted(out - HABITS.keys())
    if unknown:
        raise EvaluationError(
            *(f"there is no habit {name!r:.80}: the habits are {', '.join(HABITS)}" for name in unknown)
        )
    return frozenset(HABITS.keys() - out)
