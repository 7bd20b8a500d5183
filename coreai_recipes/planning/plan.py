"""What a recipe will cost and how it stands with the engine's rules, before any weight is read."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.decoder.model import Decoder, exported_form
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.lint.devices import Device, find_device
from coreai_recipes.lint.findings import Lint, lint
from coreai_recipes.planning.bounds import Fit, fit
from coreai_recipes.planning.choosing import choose
from coreai_recipes.planning.footprint import Footprint, footprint_of, packages_footprint
from coreai_recipes.planning.mending import mends
from coreai_recipes.planning.outline import outline_of
from coreai_recipes.planning.placing import Choice
from coreai_recipes.planning.workload import Workload, count_workloads, saved_by_sharing
from coreai_recipes.primitives.rotary import Rotary, TurningSpec
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import CoreAIExport, NoRotary
from coreai_recipes.storage.accounting import account
from coreai_recipes.storage.budget import bits_over
from coreai_recipes.storage.chunks import chunks_of
from coreai_recipes.storage.parameters import stored_parameters
from coreai_recipes.weights.regrouping import SAID

SAMPLED = 8192


@dataclass(frozen=True)
class Plan:
    """The costs and functions of a recipe, what its weights take in all and each, whether that is more than it allows,
    and what its sizes say by the engine's rules. For a device: how it fits there, what mends each rule that it breaks,
    and what a build for it chooses."""

    name: str
    costs: tuple[Footprint, ...]
    weights: dict[str, Any]
    by_tensor: tuple[dict[str, Any], ...]
    over_budget: str | None
    workloads: tuple[Workload, ...]
    saved_in_prefill: Workload | None
    functions: dict[str, int]
    lint: Lint
    notes: tuple[str, ...]
    fit: Fit | None = None
    mends: dict[str, str | None] | None = None
    choices: tuple[Choice, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["lint"]
        return {**found, **self.lint.to_json()}


def make_plan(recipe: Recipe, device: Device | None = None, overrides: Sequence[str] = ()) -> Plan:
    """The plan of `recipe`, on `device` or the one that it is for. `overrides`: of `--set`, whose fields a build for
    `device` does not choose. Raises RecipeError for what cannot be built."""
    stacks = build_stacks(recipe, exported_form(recipe))
    stored = stored_parameters(stacks)
    on = find_device(recipe.export.device) if device is None and recipe.export.device is not None else device
    workloads, drawn = count_workloads(stacks), outline_of(stacks)
    found = lint(drawn, on, allow=recipe.export.allowed)
    return Plan(
        recipe.name,
        (*(cost for stack in stacks for cost in footprint_of(stack)), *packages_footprint(chunks_of(stacks))),
        stored.to_json(),
        tuple(account(stored)),
        bits_over(recipe, stored),
        workloads,
        _saved_in_prefill(stacks),
        recipe.export.functions.queries,
        found,
        (
            *_rotaries(recipe),
            *_operations(recipe),
            *_islands(recipe),
            *_adapters(recipe),
            *([SAID] if recipe.regroups else []),
        ),
        None if on is None else fit(stacks, workloads, drawn, on),
        None if on is None else mends(recipe, on, found),
        None if device is None else choose(recipe, device, overrides)[1],
    )


def _saved_in_prefill(stacks: Sequence[StackModule]) -> Workload | None:
    """What the layers that share a cache leave undone, None where there are none."""
    (decoder,) = (stack for stack in stacks if isinstance(stack, Decoder))
    sharing = [layer.kind for layer in decoder.stack if decoder.front.shares(layer.kind)]
    if not sharing:
        return None
    saved = saved_by_sharing(decoder)
    whole = saved + sum(found.flops.get("prefill", 0) for found in count_workloads([decoder]))
    how = (
        f"{100 * saved / whole:.0f} % saved: {len(sharing)} of {len(decoder.stack)} layers run for the last token alone"
    )
    return Workload("not computed", {"prefill": saved}, how)


def _rotaries(recipe: Recipe) -> Iterator[str]:
    """What a rotary of less than float32 costs: no rule of the engine's, and lossy all the same."""
    for name, kind in recipe.model.kinds.items():
        if not isinstance(kind.rotary, NoRotary) and kind.rotary.precision != "float32":
            error = _cosine_error(kind.rotary, kind.attention.rotary_dim, recipe.export.context)
            yield f"rotary of `{name}` in {kind.rotary.precision}: cosines off by up to {error:.3f} within the context"


def _operations(recipe: Recipe) -> Iterator[str]:
    """Core AI's composite rotary, of which nothing is known but what it computes."""
    if isinstance(recipe.export, CoreAIExport) and recipe.export.rotary_op == "composite":
        yield (
            "rotaries as Core AI's composite operation, with a frequency for each pair of a head: that systems which "
            "ask for as many keep its fast kernel is supposed, not measured"
        )


def _islands(recipe: Recipe) -> Iterator[str]:
    """What leaves the engine in each layer, because the recipe says so: a plan's outline has no such operations."""
    if recipe.export.float32:
        yield f"float32 in each layer, off the engine and back (f32-mid): {', '.join(recipe.export.float32)}"


def _adapters(recipe: Recipe) -> Iterator[str]:
    """What a plan does not know of adapters, which it does not open."""
    if recipe.unmerged and recipe.export.low_rank is None:
        names = ", ".join(each.name for each in recipe.unmerged)
        yield f"the inputs of {names} are not counted: export.low_rank says what they are, or a build finds out"


def _cosine_error(rotary: TurningSpec, head_dim: int, context: int) -> float:
    """The largest error of a cosine within the context: at every position of a short one, else at SAMPLED of them."""
    import torch

    # the last ones too, where it is largest
    sampled = {*range(0, context, -(-context // SAMPLED)), *range(max(0, context - 64), context)}
    positions = torch.tensor([sorted(sampled)])
    exact = Rotary(rotary.model_copy(update={"precision": "float32"}), head_dim).angles(positions)[0]
    return float((Rotary(rotary, head_dim).angles(positions)[0] - exact).abs().max())
