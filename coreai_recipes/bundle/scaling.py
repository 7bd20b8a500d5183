"""`export.residual_scale: auto`: a number that the verification of a build measures on its way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.subject import Subject

FIELD = "export.residual_scale"
EARLY = ("rotary", "torch", "package")  # the last of these measures

Figures = dict[str, Any]


def with_scale(recipe: Recipe, scale: float) -> Recipe:
    """The recipe with that number."""
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"residual_scale": scale})})


def start_scale(recipe: Recipe, verified: bool) -> tuple[Recipe, bool, str | None]:
    """The recipe with a number in place of `auto`, whether that is to be measured, and why it is 1 where it is not."""
    from coreai_recipes.recipe.rules import scale_problems

    if recipe.export.residual_scale != "auto":
        return recipe, False, None
    why = "; ".join(problem.message for problem in scale_problems(recipe.model_dump()))
    if not why and not verified:
        why = "without verification nothing is measured"
    return with_scale(recipe, 1.0), not why, f"{FIELD}: auto is 1: {why}" if why else None


def prove_and_scale(
    subject: "Subject", required: Sequence[str], rewrite: Callable[[Recipe], object]
) -> "tuple[Report, Figures]":
    """The report on a package whose scale is 1, or on the one that `rewrite` makes of the recipe with the scale that
    was measured, in its place; and the figures that it was chosen by."""
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.run import STAGES, run_on
    from coreai_recipes.verification.scale import choose_scale, peaks_of

    if subject.package is None:
        raise ValueError("there is no package to be measured")
    subject.peaks = peaks = peaks_of(subject.recipe, subject.package)
    early = run_on(subject, EARLY, [name for name in required if name in EARLY])
    if not early.passed:
        return early, {}
    scale, kept, rest = choose_scale(peaks.peak), early.stages, [name for name in STAGES if name not in EARLY]
    if scale != 1.0:
        recipe = with_scale(subject.recipe, scale)
        rewrite(recipe)
        subject = replace(subject, recipe=recipe, peaks=None, float16_run=None, stored_logits=None)
        kept, rest = tuple(stage for stage in kept if stage.name != "package"), ["package", *rest]
    late = run_on(subject, rest, [name for name in required if name in rest])
    largest = {f"largest_{what}": float(f"{value:.4g}") for what, value in peaks.largest.items()}
    return Report((*kept, *late.stages)), {"asked": "auto", "scale": scale, **largest}


def in_words(figures: Figures) -> str:
    """`the largest product of the residual stream is 27586 without a scale, the largest divisor 27540`."""
    product, divisor = figures["largest_product"], figures["largest_divisor"]
    return f"the largest product of the residual stream is {product:g} without a scale, the largest divisor {divisor:g}"
