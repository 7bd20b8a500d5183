"""The recipes that ship with the package, with what `recipe list` tells of each."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from coreai_recipes.recipe.loader import load_recipe
from coreai_recipes.recipe.schema import Attention, GatedMLP, LayerNorm, Model, NoRotary, Recipe, RMSNorm, Rotary
from coreai_recipes.recipe.source import built_in_recipes


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue.

    Attributes:
        family: the model_type of the reference, None for an architecture without one.
        parameters: how many numbers the checkpoint holds, a tied table counted once.
        kinds: how many layers there are of each kind, in the recipe's order.
        rotary: what turns in each kind, in words.
    """

    name: str
    path: Path
    family: str | None
    parameters: int
    kinds: dict[str, int]
    rotary: str


def list_recipes() -> list[Entry]:
    """Every built-in recipe, by family and then by size."""
    rows = [describe_recipe(load_recipe(path), path) for path in built_in_recipes().values()]
    return sorted(rows, key=lambda row: (row.family or "", row.parameters))


def describe_recipe(recipe: Recipe, path: Path) -> Entry:
    """The row of one recipe."""
    layers = Counter(recipe.model.layer_kinds)
    return Entry(
        name=recipe.name,
        path=path,
        family=recipe.reference.model_type if recipe.reference else None,
        parameters=count_parameters(recipe),
        kinds={kind: layers[kind] for kind in recipe.model.kinds},
        rotary=_summarize_rotary(recipe.model),
    )


def count_parameters(recipe: Recipe) -> int:
    """How many numbers the recipe's checkpoint holds; a tied table counts once, tables that are computed not at all."""
    model = recipe.model
    layers = sum(_count_layer(model, kind) for kind in model.layer_kinds)
    tables = model.vocab_size * model.hidden_size * (1 if model.head.tied else 2)
    return tables + layers + _count_norm(model.norm, model.hidden_size) + _count_per_layer_embedding(model)


def _count_layer(model: Model, kind: str) -> int:
    spec = model.kinds[kind]
    norms = 4 if model.placement_of(kind) == "sandwich" else 2
    return (
        _count_attention(spec.attention, model.hidden_size, spec.norm or model.norm)
        + _count_mlp(spec.mlp, model.hidden_size)
        + norms * _count_norm(model.norm_of(kind), model.hidden_size)
    )


def _count_attention(attention: Attention, hidden_size: int, norm: RMSNorm | LayerNorm) -> int:
    """Four projections, less k and v where another kind's cache is read."""
    width = attention.num_heads * attention.head_dim
    kv_width = 0 if attention.shares_kv_with else attention.num_kv_heads * attention.head_dim
    count = 2 * hidden_size * (width + kv_width)
    if attention.bias != "none":
        count += width + 2 * kv_width
    if attention.bias == "qkvo":
        count += hidden_size
    if attention.qk_norm:
        count += (2 if kv_width else 1) * _count_norm(attention.qk_norm.norm or norm, attention.head_dim)
    return count


def _count_mlp(mlp: GatedMLP, hidden_size: int) -> int:
    return 3 * hidden_size * mlp.intermediate_size + (2 * mlp.intermediate_size + hidden_size if mlp.bias else 0)


def _count_norm(norm: RMSNorm | LayerNorm, size: int) -> int:
    weight = 0 if norm.weight == "none" else size
    return weight + (size if isinstance(norm, LayerNorm) and norm.bias else 0)


def _count_per_layer_embedding(model: Model) -> int:
    """Gemma 4's: the table, its projection and norm, and in each layer a gate, a projection, a norm and one scalar."""
    table = model.embedding.per_layer
    if table is None:
        return 0
    layers = len(model.layer_kinds)
    front = (table.vocab_size + model.hidden_size) * layers * table.size + _count_norm(model.norm, table.size)
    each = 2 * model.hidden_size * table.size + _count_norm(model.norm, model.hidden_size) + 1
    return front + layers * each


def _summarize_rotary(model: Model) -> str:
    """`full`, or by kind where they differ: `sliding: full, full: proportional 0.25`."""
    words = {name: _describe_rotary(kind.rotary) for name, kind in model.kinds.items()}
    different = set(words.values())
    return different.pop() if len(different) == 1 else ", ".join(f"{name}: {word}" for name, word in words.items())


def _describe_rotary(rotary: Rotary) -> str:
    if isinstance(rotary, NoRotary):
        return rotary.kind
    factor = getattr(rotary, "factor", None)
    words = rotary.kind if factor is None else f"{rotary.kind} {factor:g}"
    if rotary.pairing == "interleaved":
        words += " interleaved"
    return words if rotary.scaling is None else f"{words} ({rotary.scaling.kind} x{rotary.scaling.factor:g})"
