"""What a failing stage says to set: a field of the recipe, its value as measured or as the checkpoint says, and why."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from coreai_recipes.errors import CheckpointError
from coreai_recipes.evaluate.graph import read_whole_graph
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.importing.comparing import compare_models
from coreai_recipes.recipe.importing.family import family_names
from coreai_recipes.recipe.loader import validate_data
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.verification.calls import plan_calls, run_call
from coreai_recipes.verification.report import StageResult
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.scale import INSIDE, choose_scale
from coreai_recipes.verification.subject import Subject
from coreai_recipes.weights.tying import judge_head

MOST = 5
FEWEST_STEPS = 4
SCALE = "export.residual_scale"
ENDS = {
    "package_float16": "float16 ends at 65,504",
    "package_engine": "the engine's products end at 32,768, its divisors at 16,384",
}


@dataclass(frozen=True)
class Remedy:
    """`field`: `value` in the recipe; `field` is empty where nothing can be set, and `why` says why."""

    field: str
    value: Any
    why: str

    def __str__(self) -> str:
        shown = f"{self.value:g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.field}: {shown} ({self.why})" if self.field else self.why

    def to_json(self) -> dict[str, Any]:
        return {"field": self.field or None, "value": self.value, "text": str(self)}


def find_remedies(result: StageResult, subject: Subject) -> list[Remedy]:
    """What to set so that a stage that failed may pass; empty where nothing is known."""
    if result.name in ENDS:
        return list(_scale_stream(result, subject))
    if result.name in ("rotary", "torch"):
        return list(_as_the_checkpoint_has_it(result, subject))[:MOST]
    return []


def _scale_stream(result: StageResult, subject: Subject) -> Iterator[Remedy]:
    """The residual scale that the largest value of the stream asks for, where float16 could not hold it or where it is
    scaled until little of it is left."""
    overflowed = result.detail.get("overflowed") or []
    scale, peak = subject.recipe.export.scale, subject.measure_stream()
    fitting = choose_scale(peak)
    measured = f"the largest value of the residual stream is {peak:.4g}, and {ENDS[result.name]}"
    if not math.isfinite(peak):
        return
    if overflowed and fitting >= scale:
        inside = list(_scale_inside(result, subject))
        none = f"{SCALE} does not help: {measured}; {overflowed[0]} lies inside a block, out of reach of any scale"
        yield from inside or [Remedy("", None, none)]
    elif overflowed or fitting > scale:
        why = _why_not_scaled(subject.recipe, fitting)
        refused = Remedy("", None, f"{SCALE}: {fitting:g} would be needed, for {measured}; but {why}")
        yield refused if why else Remedy(SCALE, fitting, measured)


def _scale_inside(result: StageResult, subject: Subject) -> Iterator[Remedy]:
    """The scales inside parts that the package's largest values in float32 ask for."""
    recipe = subject.recipe
    if subject.package is None or subject.runtime == "coreai":  # whose asset shows nothing inside a layer
        return
    opened, queries = [Package(each, checked=False) for each in subject.packages], recipe.export.functions.queries
    graphs = {name: read_whole_graph(opened, name) for name in map(recipe.export.name_of, queries)}
    room = {inside: {name: inside.values(recipe, graph) for name, graph in graphs.items()} for inside in INSIDE}
    excess = dict.fromkeys(INSIDE, 0.0)
    largest = dict.fromkeys(INSIDE, 0.0)

    def note(function: str, name: str, value: Tensor) -> None:
        for inside, of in room.items():
            if name in of[function]:
                size = float(value.abs().max())
                largest[inside] = max(largest[inside], size)
                excess[inside] = max(excess[inside], size / of[function][name])

    # Core ML shows no tensors inside the package
    program, tokens = open_program(replace(subject, runtime="evaluator"), "float32"), subject.tokens.sequence
    for call in plan_calls(queries, len(tokens), FEWEST_STEPS, recipe.export.fills_calls):
        run_call(program, tokens, call, set(), recipe, note)
    for inside in INSIDE:
        fitting = inside.choose(recipe, excess[inside])
        why, measured = inside.why_not(recipe), f"{largest[inside]:.4g} is the largest value {inside.where}"
        if fitting < inside.now(recipe) and why:
            yield Remedy("", None, f"{inside.key}: {fitting:g} would be needed, for {measured}; but {why}")
        elif fitting < inside.now(recipe):
            yield Remedy(inside.key, fitting, f"{measured}, and {ENDS[result.name]}")


def _why_not_scaled(recipe: Recipe, scale: float) -> str | None:
    """Why the recipe cannot have that scale, None when it can."""
    data = recipe.model_dump(exclude_none=True)
    data["export"]["residual_scale"] = scale
    return "; ".join(problem.message for problem in validate_data(data)[1]) or None


def _as_the_checkpoint_has_it(result: StageResult, subject: Subject) -> Iterator[Remedy]:
    """Where the recipe says something else than the checkpoint."""
    recipe, checkpoint = subject.recipe, subject.weights
    if recipe.reference is None:
        return
    if recipe.model.head.tied and judge_head(checkpoint, recipe.weights.names)[0] == "own":
        why = "the checkpoint's head is not its table; `recipe build` sets this itself"
        yield Remedy("model.head.tied", False, why)
    chosen = None if checkpoint.config.get("model_type") in family_names() else recipe.reference.model_type
    try:
        theirs = recipe_from_config(checkpoint.config, recipe.name, chosen=chosen).recipe.model
    except CheckpointError:
        return  # a config that our own rules do not read says nothing here
    differences = compare_models(recipe.model, theirs)
    of_all = {difference.path for difference in differences if not difference.layers}
    for difference in differences:
        said_of_all = bool(difference.layers) and difference.path in of_all  # a norm's eps, once for every layer
        if difference.path != "head.tied" and not said_of_all:
            why = f"the checkpoint's config has it so, the recipe has {difference.one}"
            yield Remedy(difference.where, difference.other, why)
