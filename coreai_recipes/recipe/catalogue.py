"""The recipes that ship with the package, with what `recipe list` tells of each."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from coreai_recipes.recipe.loader import load_recipe
from coreai_recipes.recipe.schema import (
    Attention,
    Experts,
    GatedMLP,
    LatentAttention,
    LayerNorm,
    MixtureMLP,
    Model,
    NoRotary,
    NTKScaling,
    PlainMLP,
    Recipe,
    RMSNorm,
    Rotary,
)
from coreai_recipes.recipe.source import built_in_recipes


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue.

    Attributes:
        family: the model_type of the reference, None for an architecture without one.
        parameters: how many numbers the recipe takes of the checkpoint, a tied table counted once.
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
    """How many numbers the recipe takes of its checkpoint: those of its decoder, a tied table counted once.

    A draft is a checkpoint of its own. Without torch, so that `recipe list` is quick; a test holds it to the decoder.
    """
    model = recipe.model
    layers = Counter(model.layer_kinds)
    return (
        _count_ends(model)
        + sum(count * _count_layer(model, kind) for kind, count in layers.items())
        + (_count_norm(model.final_norm, model.hidden_size) if model.final_norm else 0)
        + _count_per_layer_front(model)
    )


def _count_ends(model: Model) -> int:
    """The embedding and the head."""
    embedding, width = model.embedding, model.embedding.width or model.hidden_size
    count = model.vocab_size * width * (1 if model.head.tied else 2)
    if embedding.width is not None:
        count += 2 * embedding.width * model.hidden_size  # a projection in and one out
    if embedding.norm is not None:
        count += _count_norm(embedding.norm, model.hidden_size)
    if embedding.positions is not None:
        count += (embedding.positions.offset + embedding.positions.count) * model.hidden_size
    return count + (model.vocab_size if model.head.bias else 0)


def _count_layer(model: Model, kind: str) -> int:
    spec, norm, hidden_size = model.kinds[kind], model.norm_of(kind), model.hidden_size
    norms = {"sandwich": 4, "parallel": 1}.get(model.placement_of(kind), 2)
    count = _count_attention(spec.attention, hidden_size, norm) + _count_mlp(spec.mlp, hidden_size)
    if spec.experts is not None:
        norms += 3  # behind the dense MLP, before and behind the experts
        count += _count_experts(spec.experts, hidden_size)
    if model.embedding.per_layer is not None:
        norms += 1
        count += 2 * hidden_size * model.embedding.per_layer.size  # a gate and a projection
    return count + norms * _count_norm(norm, hidden_size) + int(model.layer_scalar)


def _count_latent(attention: LatentAttention, hidden_size: int) -> int:
    """Projections to and from the short rows, their norms, and o."""
    queries, values = attention.num_heads * attention.head_dim, attention.num_heads * attention.value_dim
    passing = attention.num_heads * attention.nope_dim
    row = attention.kv_rank + attention.rope_dim
    count = hidden_size * (row + values) + attention.kv_rank * (passing + values)
    count += _count_norm(attention.latent_norm, attention.kv_rank)
    biases = row + hidden_size
    if attention.q_rank is None:
        count += hidden_size * queries
    else:
        count += attention.q_rank * (hidden_size + queries) + _count_norm(attention.latent_norm, attention.q_rank)
        biases += attention.q_rank
    return count + (biases if attention.bias == "qkvo" else 0)


def _count_attention(attention: Attention | LatentAttention, hidden_size: int, norm: RMSNorm | LayerNorm) -> int:
    """Projections and norms of q, k, v and o, less k and v where another kind's cache is read, and v where it is k."""
    if isinstance(attention, LatentAttention):
        return _count_latent(attention, hidden_size)
    width, kv_width = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    keys_and_values = 0 if attention.shares_kv_with else 1 if attention.k_eq_v else 2
    count = hidden_size * (2 * width + keys_and_values * kv_width)
    if attention.bias != "none":
        count += width + keys_and_values * kv_width
    if attention.sinks:
        count += attention.num_heads
    if attention.bias == "qkvo":
        count += hidden_size
    if attention.qk_norm:
        heads = {"head": (1, 1), "each_head": (attention.num_heads, attention.num_kv_heads)}
        one, other = heads.get(attention.qk_norm.over, (attention.num_heads, attention.num_kv_heads))
        normed = one + (other if keys_and_values else 0)
        count += normed * _count_norm(attention.qk_norm.norm or norm, attention.head_dim)
    return count


def _count_mlp(mlp: GatedMLP | PlainMLP | MixtureMLP, hidden_size: int) -> int:
    if isinstance(mlp, MixtureMLP):
        return _count_mixture(mlp, hidden_size)
    inner = 2 if isinstance(mlp, GatedMLP) else 1
    count = (inner + 1) * hidden_size * mlp.intermediate_size + (2 if mlp.activation == "xielu" else 0)
    return count + (inner * mlp.intermediate_size + hidden_size if mlp.bias else 0)


def _count_mixture(mlp: MixtureMLP, hidden_size: int) -> int:
    """Gate, up and down of each expert, its row of the router and its bias, and the shared expert with its gate."""
    each = 3 * hidden_size * mlp.intermediate_size + hidden_size + (mlp.router.bias != "none")
    each += 2 * mlp.intermediate_size + hidden_size if mlp.bias else 0
    shared = 0 if mlp.shared is None else hidden_size * (3 * mlp.shared.width + mlp.shared.gate)
    return mlp.num_experts * each + shared


def _count_experts(experts: Experts, hidden_size: int) -> int:
    """Gate, up and down of each expert, its row of the router and its scale, and the router's scale of the input."""
    each = 3 * hidden_size * experts.intermediate_size + hidden_size + 1
    return experts.num_experts * each + hidden_size


def _count_norm(norm: RMSNorm | LayerNorm, size: int) -> int:
    weight = 0 if norm.weight == "none" else size
    return weight + (size if isinstance(norm, LayerNorm) and norm.bias else 0)


def _count_per_layer_front(model: Model) -> int:
    """Gemma 4's second table, and the projection and norm that every layer's inputs come from."""
    table = model.embedding.per_layer
    if table is None:
        return 0
    return (table.vocab_size + model.hidden_size) * len(model.layer_kinds) * table.size + _count_norm(
        model.norm, table.size
    )


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
    if rotary.scaling is None:
        return words
    by = rotary.scaling.alpha if isinstance(rotary.scaling, NTKScaling) else rotary.scaling.factor
    return f"{words} ({rotary.scaling.kind} x{by:g})"
