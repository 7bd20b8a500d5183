"""What a recipe will cost and how it stands with the engine's rules, before any weight is read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from coreai_recipes.draft import DRAFT, Draft, build_draft
from coreai_recipes.model import PER_LAYER_TABLE, Decoder, build_decoder
from coreai_recipes.primitives.experts import Experts
from coreai_recipes.primitives.layer import Layer
from coreai_recipes.primitives.rotary import Rotary, TurningSpec
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import NoRotary
from coreai_recipes.workload import Workload, count_workloads, expert_size, saved_by_sharing

CHUNK_BYTES = 1_000_000_000  # ANEMLL takes 0.95 GB for a chunk, CoreML-LLM 1.0 to 1.4
ALIGNMENT = 32  # float16 values in the engine's 64 bytes
SAMPLED = 8192


@dataclass(frozen=True)
class Cost:
    """Bytes of one thing, and how they come about."""

    what: str
    bytes: int
    how: str


@dataclass(frozen=True)
class Finding:
    """How the recipe stands with one rule: `ok`, `warning`, or `note` where sources disagree or it is only a cost."""

    rule: str
    verdict: str
    found: str


@dataclass(frozen=True)
class Plan:
    """The costs, functions and findings of a recipe."""

    name: str
    costs: tuple[Cost, ...]
    workloads: tuple[Workload, ...]
    saved_in_prefill: Workload | None
    functions: dict[str, int]
    findings: tuple[Finding, ...]

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

    def rule_rows(self) -> list[tuple[str, str, str]]:
        return [(finding.rule, finding.verdict, finding.found) for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(recipe: Recipe) -> Plan:
    """The plan of `recipe`. Raises RecipeError for what cannot be built."""
    decoder = build_decoder(recipe)
    draft = build_draft(recipe) if recipe.draft else None
    findings = (*_alignment(recipe), *_axes(decoder), *_states(decoder), *_rotaries(recipe), *_size(decoder, draft))
    return Plan(
        recipe.name,
        (*_costs(decoder), *_draft_costs(draft)),
        count_workloads(decoder, draft),
        _saved_in_prefill(decoder),
        recipe.export.functions.queries,
        findings,
    )


def _costs(decoder: Decoder) -> Iterator[Cost]:
    recipe = decoder.recipe
    for name in decoder.front.kinds:
        layers = [layer for layer in decoder.stack if layer.kind == name]
        experts = [layer.experts for layer in layers if isinstance(layer.experts, Experts)]
        stacks = sum(2 * found.num_experts * expert_size(found) for found in experts)
        size = sum(2 * p.numel() for layer in layers for p in layer.parameters())
        yield Cost(f"weights of `{name}`", size - stacks, f"{len(layers)} layers, float16")
        if experts:
            yield Cost(f"experts of `{name}`", stacks, _describe_experts(experts))
    table = decoder.get_parameter("embedding.weight")
    shape = f"{' x '.join(map(str, table.shape))}, float16"
    if recipe.model.head.tied:
        yield Cost("table, tied to the head", 2 * table.numel(), f"{shape}, stored once")
    else:
        yield Cost("table and head", 4 * table.numel(), f"twice {shape}")
    yield Cost("around the layers", _around(decoder), "the last norm, and what else stands before and behind them")
    if decoder.per_layer is not None:
        front = sum(2 * p.numel() for p in decoder.per_layer.parameters())
        yield Cost("per-layer inputs", front, "their projection and norm, float16")
        rows, width = decoder.get_parameter(PER_LAYER_TABLE).shape
        how = f"{rows} x {width}, float16, read by the host, {2 * width:,} bytes a token, never sent to the engine"
        yield Cost("per-layer table", 2 * rows * width, how)
    for name, spec in decoder.front.states.items():
        values = spec.layers * spec.num_kv_heads * spec.rows * spec.head_dim
        kept = f"a ring of {spec.rows} rows" if spec.window else f"{spec.rows} rows"
        yield Cost(f"states of `{name}`", 4 * values, f"K and V, {spec.layers} layers, {kept}, a session's own")


def _around(decoder: Decoder) -> int:
    """Bytes of what is neither in a layer nor a table: norms, projections, learned positions."""
    others = ("layers.", "per_layer.", "embedding.weight", "head.weight", *decoder.tables)
    return sum(2 * p.numel() for name, p in decoder.named_parameters() if not name.startswith(others))


def _describe_experts(experts: list[Experts]) -> str:
    one = experts[0]
    layers, each = len(experts), 2 * expert_size(one)
    in_all = f"{layers} layers of {one.num_experts}, float16; a call of several tokens reads all"
    if one.gathers(1):
        return f"{in_all}, decode the {one.router.top} of its token: {layers * one.router.top * each:,} bytes"
    return f"{in_all}, and so does decode"


def _draft_costs(draft: Draft | None) -> Iterator[Cost]:
    if draft is not None:
        head = 2 * draft.spec.vocab_size * draft.spec.hidden_size
        size = sum(2 * p.numel() for p in draft.parameters()) - head
        yield Cost("weights of the draft", size, f"{len(draft.stack)} layers, which read the target's states; float16")
        yield Cost("head of the draft", head, f"{draft.spec.vocab_size} x {draft.spec.hidden_size}, float16")


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


def _alignment(recipe: Recipe) -> Iterator[Finding]:
    rule = f"widths in multiples of {ALIGNMENT}"
    widths = {"hidden_size": recipe.model.hidden_size}
    widths |= {f"head_dim of `{name}`": kind.attention.head_dim for name, kind in recipe.model.kinds.items()}
    odd = [f"{name} {size}" for name, size in widths.items() if size % ALIGNMENT]
    yield Finding(rule, "warning" if odd else "ok", f"padded by the engine: {', '.join(odd)}" if odd else "all are")
    yield Finding("last axis of a decode step", "note", "one position a step is padded to 64 bytes inside: memory only")


def _axes(decoder: Decoder) -> Iterator[Finding]:
    model = decoder.recipe.model
    sizes = {"vocab_size": model.vocab_size, "hidden_size": model.hidden_size}
    for name in decoder.front.kinds:
        layer = next(layer for layer in decoder.stack if layer.kind == name)
        for part in ("attention", "mlp", "experts"):
            found = [size for p in _parameters_of(layer, part) for size in p.shape if size != model.hidden_size]
            if found:
                sizes[f"{part} of `{name}`"] = max(found)
    for limit, chips in ((16384, "up to A15 and M1"), (65536, "from A16 and M2 on")):
        beyond = [f"{name} {size}" for name, size in sizes.items() if size > limit]
        found_words = f"may leave the engine: {', '.join(beyond)}" if beyond else "none is longer"
        yield Finding(f"axes of at most {limit}, {chips}", "warning" if beyond else "ok", found_words)


def _parameters_of(layer: Layer, part: str) -> list[nn.Parameter]:
    module = getattr(layer, part)
    return [] if module is None else list(module.parameters())


def _states(decoder: Decoder) -> Iterator[Finding]:
    states = decoder.front.states
    found = f"{2 * len(states)} state tensors; sources disagree on more than one"
    yield Finding("state tensors", "note", found)
    longest = max(decoder.recipe.export.functions.queries.values())
    if longest > 32:
        yield Finding("states written 32 positions at a time", "note", f"{longest} at once here; sources disagree")
    unbounded = [name for name, spec in states.items() if spec.window is None]
    if unbounded:
        rows = max(states[name].rows for name in unbounded)
        yield Finding(
            "cost grows with the cache",
            "note",
            f"each step of {', '.join(f'`{n}`' for n in unbounded)} reads {rows} rows",
        )


def _rotaries(recipe: Recipe) -> Iterator[Finding]:
    for name, kind in recipe.model.kinds.items():
        if not isinstance(kind.rotary, NoRotary) and kind.rotary.precision != "float32":
            error = _cosine_error(kind.rotary, kind.attention.rotary_dim, recipe.export.context)
            found = f"{kind.rotary.precision}: cosines off by up to {error:.3f} within the context"
            yield Finding(f"rotary precision of `{name}`", "warning", found)
        else:
            yield Finding(f"rotary precision of `{name}`", "ok", "angles in float32, a small island beside the engine")


def _cosine_error(rotary: TurningSpec, head_dim: int, context: int) -> float:
    """The largest error of a cosine within the context: at every position of a short one, else at SAMPLED of them."""
    import torch

    # the last ones too, where it is largest
    sampled = {*range(0, context, -(-context // SAMPLED)), *range(max(0, context - 64), context)}
    positions = torch.tensor([sorted(sampled)])
    exact = Rotary(rotary.model_copy(update={"precision": "float32"}), head_dim).angles(positions)[0]
    return float((Rotary(rotary, head_dim).angles(positions)[0] - exact).abs().max())


def _size(decoder: Decoder, draft: Draft | None) -> Iterator[Finding]:
    total = sum(2 * p.numel() for name, p in decoder.named_parameters() if name not in decoder.tables)
    total += sum(2 * p.numel() for p in draft.parameters()) if draft else 0
    verdict = "warning" if total > CHUNK_BYTES else "ok"
    yield Finding("a package of about 1 GB", verdict, f"{total / 1e9:.2f} GB in one package")
