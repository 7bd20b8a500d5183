"""What a recipe will cost and how it stands with the engine's rules, before any weight is read."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.model import Decoder, build_decoder
from coreai_recipes.primitives.rotary import Rotary, TurningSpec
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import NoRotary

CHUNK_BYTES = 1_000_000_000  # ANEMLL takes 0.95 GB for a chunk, CoreML-LLM 1.0 to 1.4
ALIGNMENT = 32  # float16 values in the engine's 64 bytes


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
    functions: dict[str, int]
    findings: tuple[Finding, ...]

    def rows(self) -> list[tuple[str, str, str]]:
        return [(cost.what, f"{cost.bytes:,}", cost.how) for cost in self.costs]

    def rule_rows(self) -> list[tuple[str, str, str]]:
        return [(finding.rule, finding.verdict, finding.found) for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(recipe: Recipe) -> Plan:
    """The plan of `recipe`. Raises RecipeError for what cannot be built."""
    decoder = build_decoder(recipe)
    findings = (*_alignment(recipe), *_axes(recipe), *_states(decoder), *_rotaries(recipe), *_size(decoder))
    return Plan(recipe.name, tuple(_costs(decoder)), recipe.export.functions.queries, findings)


def _costs(decoder: Decoder) -> Iterator[Cost]:
    recipe = decoder.recipe
    layers = dict.fromkeys(decoder.front.kinds, 0)
    for layer in decoder.stack:
        layers[layer.kind] += sum(2 * p.numel() for p in layer.parameters())
    counts = recipe.model.layer_kinds
    for name, size in layers.items():
        yield Cost(f"weights of `{name}`", size, f"{counts.count(name)} layers, float16")
    table = recipe.model.vocab_size * recipe.model.hidden_size * 2
    shape = f"{recipe.model.vocab_size} x {recipe.model.hidden_size}, float16"
    if recipe.model.head.tied:
        yield Cost("table, tied to the head", table, f"{shape}, stored once")
    else:
        yield Cost("table and head", 2 * table, f"twice {shape}")
    for name, spec in decoder.front.states.items():
        values = spec.layers * spec.num_kv_heads * spec.rows * spec.head_dim
        kept = f"a ring of {spec.rows} rows" if spec.window else f"{spec.rows} rows"
        yield Cost(f"states of `{name}`", 4 * values, f"K and V, {spec.layers} layers, {kept}, a session's own")


def _alignment(recipe: Recipe) -> Iterator[Finding]:
    rule = f"widths in multiples of {ALIGNMENT}"
    widths = {"hidden_size": recipe.model.hidden_size}
    widths |= {f"head_dim of `{name}`": kind.attention.head_dim for name, kind in recipe.model.kinds.items()}
    odd = [f"{name} {size}" for name, size in widths.items() if size % ALIGNMENT]
    yield Finding(rule, "warning" if odd else "ok", f"padded by the engine: {', '.join(odd)}" if odd else "all are")
    yield Finding("last axis of a decode step", "note", "one position a step is padded to 64 bytes inside: memory only")


def _axes(recipe: Recipe) -> Iterator[Finding]:
    sizes = {"vocab_size": recipe.model.vocab_size, "hidden_size": recipe.model.hidden_size}
    for name, kind in recipe.model.kinds.items():
        sizes[f"intermediate_size of `{name}`"] = kind.mlp.intermediate_size
        sizes[f"queries of `{name}`"] = kind.attention.num_heads * kind.attention.head_dim
    for limit, chips in ((16384, "up to A15 and M1"), (65536, "from A16 and M2 on")):
        beyond = [f"{name} {size}" for name, size in sizes.items() if size > limit]
        found = f"may leave the engine: {', '.join(beyond)}" if beyond else "none is longer"
        yield Finding(f"axes of at most {limit}, {chips}", "warning" if beyond else "ok", found)


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
            error = _cosine_error(kind.rotary, kind.attention.head_dim, recipe.export.context)
            found = f"{kind.rotary.precision}: cosines off by up to {error:.3f} within the context"
            yield Finding(f"rotary precision of `{name}`", "warning", found)
        else:
            yield Finding(f"rotary precision of `{name}`", "ok", "angles in float32, a small island beside the engine")


def _cosine_error(rotary: TurningSpec, head_dim: int, context: int) -> float:
    """The largest error of a cosine at the last position of the context."""
    import torch

    positions = torch.arange(context)[None]
    exact = Rotary(rotary.model_copy(update={"precision": "float32"}), head_dim).angles(positions)[0]
    return float((Rotary(rotary, head_dim).angles(positions)[0] - exact).abs().max())


def _size(decoder: Decoder) -> Iterator[Finding]:
    total = sum(2 * parameter.numel() for parameter in decoder.parameters())
    verdict = "warning" if total > CHUNK_BYTES else "ok"
    yield Finding("a package of about 1 GB", verdict, f"{total / 1e9:.2f} GB in one package")
