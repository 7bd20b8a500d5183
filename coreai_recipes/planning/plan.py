"""What a recipe will cost and how it stands with the engine's rules, before any weight is read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import PER_LAYER_TABLE, Decoder, build_decoder, exported_form
from coreai_recipes.lint.chips import find_chip
from coreai_recipes.lint.findings import Lint, lint
from coreai_recipes.planning.outline import outline_of
from coreai_recipes.planning.workload import Workload, count_workloads, saved_by_sharing
from coreai_recipes.primitives.experts import Experts
from coreai_recipes.primitives.rotary import Rotary, TurningSpec
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import DRAFT, NoRotary
from coreai_recipes.storage.budget import bits_over
from coreai_recipes.storage.compression import Parameters
from coreai_recipes.storage.parameters import own_parameters, stored_parameters

SAMPLED = 8192
EXPERT_STACKS = ("gate_up", "down")


@dataclass(frozen=True)
class Cost:
    """Bytes of one thing, and how they come about."""

    what: str
    bytes: int
    how: str


@dataclass(frozen=True)
class Plan:
    """The costs and functions of a recipe, what its weights take in all, whether that is more than it allows, and what
    its sizes say by the engine's rules."""

    name: str
    costs: tuple[Cost, ...]
    weights: dict[str, Any]
    over_budget: str | None
    workloads: tuple[Workload, ...]
    saved_in_prefill: Workload | None
    functions: dict[str, int]
    lint: Lint
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str, str]]:
        return [(cost.what, f"{cost.bytes:,}", cost.how) for cost in self.costs]

    def workload_columns(self) -> tuple[str, ...]:
        counts = {**self.functions, **({DRAFT: 1} if any(DRAFT in found.flops for found in self.workloads) else {})}
        named = [f">{name}" if count == 1 else f">{name} of {count}" for name, count in counts.items()]
        return ("products", *named, "how")

    def workload_rows(self) -> list[tuple[str, ...]]:
        """Floating point operations of a call of each function, in all and what the shared caches save of it."""
        functions = dict.fromkeys(name for found in self.workloads for name in found.flops)
        total = {name: sum(found.flops.get(name, 0) for found in self.workloads) for name in functions}
        rows = [*self.workloads, Workload("all", total, "a multiply-add is two")]
        rows += [self.saved_in_prefill] if self.saved_in_prefill else []
        return [(r.what, *(f"{r.flops[n]:,}" if n in r.flops else "-" for n in functions), r.how) for r in rows]

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["lint"]
        return {**found, "findings": [finding.to_json() for finding in self.lint.findings]}


def make_plan(recipe: Recipe) -> Plan:
    """The plan of `recipe`. Raises RecipeError for what cannot be built."""
    decoder = build_decoder(recipe, exported_form(recipe))
    draft = Draft.build(recipe) if recipe.draft else None
    stored = stored_parameters([decoder, *([draft] if draft else [])])
    chip = None if recipe.export.device is None else find_chip(recipe.export.device)
    return Plan(
        recipe.name,
        (*_costs(decoder), *_draft_costs(decoder, draft)),
        stored.to_json(),
        bits_over(recipe, stored),
        count_workloads(decoder, draft),
        _saved_in_prefill(decoder),
        recipe.export.functions.queries,
        lint(outline_of(decoder, draft), chip, allow=recipe.export.allowed),
        tuple(_rotaries(recipe)),
    )


def _costs(decoder: Decoder) -> Iterator[Cost]:
    recipe, own = decoder.recipe, own_parameters([decoder])
    layers = own.below("layers.")
    for name in decoder.front.kinds:
        of_kind = [index for index, layer in enumerate(decoder.stack) if layer.kind == name]
        experts = own.below(*(f"layers.{i}.experts.{leaf}" for i in of_kind for leaf in EXPERT_STACKS))
        others = own.below(*(f"layers.{i}." for i in of_kind)).without(experts)
        yield Cost(f"weights of `{name}`", others.bytes, f"{len(of_kind)} layers, {_forms(others)}")
        found = decoder.stack[of_kind[0]].experts
        if isinstance(found, Experts):
            yield Cost(f"experts of `{name}`", experts.bytes, _describe_experts(found, len(of_kind), experts))
    table, raw, front = own.below("embedding.weight"), own.below(PER_LAYER_TABLE), own.below("per_layer.")
    head = own.below("head.weight")
    shape = f"{' x '.join(map(str, table.shapes['embedding.weight']))}, {_forms(table)}"
    if recipe.model.head.tied:
        yield Cost("table, tied to the head", table.bytes, f"{shape}, stored once")
    else:
        yield Cost("table and head", table.bytes + head.bytes, f"twice {shape}")
    around = own.without(layers, table, head, front, raw)
    yield Cost("around the layers", around.bytes, "the last norm, and what else stands before and behind them")
    if front.shapes:
        yield Cost("per-layer inputs", front.bytes, f"their projection and norm, {_forms(front)}")
    for rows, width in raw.shapes.values():
        read = f"read by the host, {raw.bytes // rows:,} bytes a token, never sent to the engine"
        yield Cost("per-layer table", raw.bytes, f"{rows} x {width}, {raw.forms}, {read}")
    for name, spec in decoder.front.states.items():
        values = spec.layers * spec.num_kv_heads * spec.rows * spec.head_dim
        kept = f"a ring of {spec.rows} rows" if spec.window else f"{spec.rows} rows"
        yield Cost(f"states of `{name}`", 4 * values, f"K and V, {spec.layers} layers, {kept}, a session's own")


def _forms(parameters: Parameters) -> str:
    """How they are stored, and how many bits that takes where it is not two bytes a weight throughout."""
    bits = parameters.bits_per_weight
    return parameters.forms if bits == 16 else f"{parameters.forms}, {bits:.2f} bits a weight"


def _describe_experts(one: Experts, layers: int, stacks: Parameters) -> str:
    each = stacks.bytes // (layers * one.num_experts)
    in_all = f"{layers} layers of {one.num_experts}, {_forms(stacks)}; a call of several tokens reads all"
    if one.gathers(1):
        return f"{in_all}, decode the {one.router.top} of its token: {layers * one.router.top * each:,} bytes"
    return f"{in_all}, and so does decode"


def _draft_costs(decoder: Decoder, draft: Draft | None) -> Iterator[Cost]:
    if draft is not None:
        own = own_parameters([draft])
        head = own.below("draft.head.weight")
        size = f"{draft.spec.vocab_size} x {draft.spec.hidden_size}, {_forms(head)}"
        how = f"{len(draft.stack)} layers, which read the target's states; {_forms(own.without(head))}"
        yield Cost("weights of the draft", own.without(head).bytes, how)
        yield Cost("head of the draft", head.bytes, size)


def _saved_in_prefill(decoder: Decoder) -> Workload | None:
    """What the layers that share a cache leave undone, None where there are none."""
    sharing = [layer.kind for layer in decoder.stack if decoder.front.shares(layer.kind)]
    if not sharing:
        return None
    saved = saved_by_sharing(decoder)
    whole = saved + sum(found.flops.get("prefill", 0) for found in count_workloads(decoder))
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


def _cosine_error(rotary: TurningSpec, head_dim: int, context: int) -> float:
    """The largest error of a cosine within the context: at every position of a short one, else at SAMPLED of them."""
    import torch

    # the last ones too, where it is largest
    sampled = {*range(0, context, -(-context // SAMPLED)), *range(max(0, context - 64), context)}
    positions = torch.tensor([sorted(sampled)])
    exact = Rotary(rotary.model_copy(update={"precision": "float32"}), head_dim).angles(positions)[0]
    return float((Rotary(rotary, head_dim).angles(positions)[0] - exact).abs().max())
