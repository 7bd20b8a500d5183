"""`export.residual_scale: auto`: a number that the verification of a build measures on its way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe

if TYPE_CHECKING:
    from coreai_recipes.bundle.packaging import Composed, Written
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.subject import Subject

FIELD = "export.residual_scale"
LEAST = 2.0**-24  # float16's smallest number: a weight beyond even that is none
EARLY = ("rotary", "torch", "package")  # the last of these measures

Figures = dict[str, Any]


def with_scale(recipe: Recipe, scale: float) -> Recipe:
    """The recipe with that number."""
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"residual_scale": scale})})


def start_scale(recipe: Recipe, verified: bool) -> tuple[Recipe, bool, str | None]:
    """The recipe with a number in place of `auto`, whether that is to be measured, and why it is 1 where it is not."""
    from coreai_recipes.recipe.export_rules import scale_problems

    if recipe.export.residual_scale != "auto":
        return recipe, False, None
    why = "; ".join(problem.message for problem in scale_problems(recipe.model_dump()))
    if not why and not verified:
        why = "without verification, nothing is measured"
    return with_scale(recipe, 1.0), not why, f"{FIELD}: auto is 1: {why}" if why else None


def write_first(composed: "Composed", write: "Callable[[Recipe], Written]", measures: bool) -> "Written":
    """The package, by `write`. Where its scale is still to be measured that starts at 1, or where the weights that take
    it up fit into float16: those of norms behind blocks may pass its end, as the stream does.

    Raises BeyondFloat16, with the scale that would do where the recipe can have one.
    """
    from coreai_recipes.storage.float16 import FLOAT16_MAX, BeyondFloat16
    from coreai_recipes.verification.scale import INSIDE, largest_power

    recipe = composed.recipe
    while True:
        try:
            return write(recipe)
        except BeyondFloat16 as beyond:
            factor, names = largest_power(FLOAT16_MAX / beyond.largest), _parameters_of(composed, beyond.tensor)
            scale = recipe.export.scale * factor
            if _is_of_stream(recipe, names) and scale >= LEAST and measures:
                recipe = with_scale(recipe, scale)
                continue
            remedies = [f"{FIELD}: {scale:g}"] if _is_of_stream(recipe, names) else []
            for inside in INSIDE:
                if any(inside.holds(recipe, name) for name in names) and not inside.why_not(recipe):
                    remedies.append(f"{inside.key}: {inside.now(recipe) * factor:g}")
            if not remedies:
                raise
            raise CheckpointError(f"{beyond}\n  {' or '.join(remedies)} would hold it") from None


def _parameters_of(composed: "Composed", tensor: str) -> list[str]:
    """The decoder's parameters that a tensor of the checkpoint fills."""
    own = {name for name, _ in composed.stacks[0].named_parameters()}
    found = [name for name, binding in composed.bindings.items() if tensor in binding.tensors]
    return [name for name in found if name in own]


def _is_of_stream(recipe: Recipe, names: Sequence[str]) -> bool:
    """Whether one of these parameters takes up the stream's scale, in a recipe that can have one."""
    from coreai_recipes.recipe.export_rules import scale_problems
    from coreai_recipes.verification.scale import STREAM_HALVED
    from coreai_recipes.weights.folding import stored_as

    takes = any(stored_as(recipe, name, STREAM_HALVED).factor < 1 for name in names)
    return takes and not list(scale_problems(recipe.model_dump()))


def prove_and_scale(
    subject: "Subject", required: Sequence[str], rewrite: Callable[[Recipe], object]
) -> "tuple[Report, Figures]":
    """The report on the package that was written first, or on the one that `rewrite` makes of the recipe with the scale
    that was measured, in its place; and the figures that it was chosen by."""
    from coreai_recipes.verification.report import Report
    from coreai_recipes.verification.run import run_on
    from coreai_recipes.verification.scale import choose_scale, peaks_of
    from coreai_recipes.verification.stages import usual_stages

    if subject.package is None:
        raise ValueError("there is no package to measure")
    subject.peaks = peaks = peaks_of(subject.recipe, subject.package)
    early = run_on(subject, EARLY, [name for name in required if name in EARLY])
    if not early.passed:
        return early, {}
    start = subject.recipe.export.scale
    scale, kept, rest = (
        min(choose_scale(peaks.peak), start),
        early.stages,
        [name for name in usual_stages(subject.recipe) if name not in EARLY],
    )
    if scale != start:
        recipe = with_scale(subject.recipe, scale)
        subject.close_packages()
        rewrite(recipe)
        subject = replace(subject, recipe=recipe, peaks=None, float16_run=None, stored_logits=None)
        kept, rest = tuple(stage for stage in kept if stage.name != "package"), ["package", *rest]
    late = run_on(subject, rest, [name for name in required if name in rest])
    largest = {f"largest_{what}": float(f"{value:.4g}") for what, value in peaks.largest.items()}
    return Report((*kept, *late.stages)), {"asked": "auto", "scale": scale, **largest}


def in_words(figures: Figures) -> str:
    """`of the residual stream without a scale, the largest product 27586 and the largest divisor 27540`: norms behind
    the blocks leave no product that is of the stream."""
    found = {name: figures[f"largest_{name}"] for name in ("product", "divisor")}
    if not any(found.values()):
        found = {"value": figures["largest_stream"]}
    of_both = [f"the largest {name} {value:g}" for name, value in found.items() if value]
    return f"of the residual stream without a scale, {' and '.join(of_both)}"
