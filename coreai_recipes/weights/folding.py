"""Folds: exact rewritings of weights as they are read, that leave the exported program less to do.

`stored_as` says for each parameter of a stack how it differs from the checkpoint's tensor: by what a model multiplies
it, what is added, by which power of two it is multiplied, and in which order the dimensions of each head stand.
"""

from coreai_recipes.primitives.layer import MLP_NORMED_BEHIND, NORMED_BEHIND, Form
from coreai_recipes.primitives.rotary import fold_order
from coreai_recipes.recipe.schema import (
    MODEL,
    RGLRU,
    DifferentialAttention,
    GatedMLP,
    LatentAttention,
    LayerKind,
    LayerNorm,
    Mamba1,
    MixtureAttention,
    MixtureMLP,
    Recipe,
    RMSNorm,
    RotaryFold,
    Stack,
)
from coreai_recipes.weights.computed import initial_lambda
from coreai_recipes.weights.multipliers import multiplier_of
from coreai_recipes.weights.rewrite import Rewrite

# what reads the residual stream in each block, and what writes to it; `input` is a short convolution's, `last` also
# the gated delta rule's and Mamba-2's, as OF_STATES
FIRST_OF_ATTENTION = (
    "q",
    "k",
    "v",
    "output_gate",
    "input",
    "query",
    "key",
    "value",
    "gate",
    "beta",
    "decay",
    "mixed",
    "step",
)
LAST_OF_BLOCKS = (
    ("attention", "o"),
    ("attention", "last"),
    ("state_space", "last"),
    ("mlp", "down"),
    ("mlp", "to_stream"),
)
LAST_NORMS = (("attention_post_norm",), ("mlp_post_norm",))
BESIDE_BLOCKS = (("per_layer", "norm"), ("laurel", "norm"))  # norms of what is added to the stream beside blocks


def stored_as(recipe: Recipe, name: str, form: Form, key: str = MODEL) -> Rewrite:
    """How the parameter `name` of the recipe's stack `key`, in `form`, comes from the checkpoint's tensor."""
    stack, parts = recipe.stacks[key].layers, name.split(".")
    if parts[0] != "layers":
        of_head = (parts[0] == "norm" and "projections" not in parts) or parts[:2] == ["head", "bias"]
        factor = form.head_scale if of_head else 1.0
        return Rewrite(_added(_norm_around(recipe, stack, parts), parts[-1]), factor=factor)
    layer, parts = int(parts[1]), parts[2:]
    kind_name = stack.layer_kinds[layer]
    kind = stack.kinds[kind_name]
    if parts[:2] == ["mlp", "activation"]:  # xielu's alphas, whose logits are what a checkpoint has
        return Rewrite(function="softplus", offset=0.5 if parts[-1] == "alpha_n" else 0.0)
    if parts in (["attention", "rate"], ["state_space", "rate"]):  # no program takes the exp of a weight
        return Rewrite(function="softplus" if isinstance(kind.attention, RGLRU) else "negative_exp")
    of_pairs = isinstance(kind.attention, DifferentialAttention) and parts == ["attention", "o", "weight"]
    multiplier = 1 - initial_lambda(layer) if of_pairs else multiplier_of(kind, parts)
    norm = _norm_at(stack, kind_name, parts)
    rows, columns = _orders(recipe, kind, kind_name, parts, form.folded) if form.folded else (None, None)
    factor = _stream_factor(stack, kind_name, parts, form.residual_scale) * _mlp_factor(
        stack, kind_name, parts, form.mlp_scale
    )
    return Rewrite(_added(norm, parts[-1]), multiplier, factor, rows, columns)


def _added(norm: RMSNorm | LayerNorm | None, leaf: str) -> float:
    """1 for the weight of a `1+w` norm: the sum is taken in float32, once."""
    return 1.0 if norm is not None and leaf == "weight" and norm.weight == "1+w" else 0.0


def _norm_around(recipe: Recipe, stack: Stack, parts: list[str]) -> RMSNorm | LayerNorm | None:
    """The norm that a parameter outside of the layers belongs to."""
    match parts[:2]:
        case ["norm", _]:
            return stack.final_norm
        case ["embedding", "norm"]:
            return recipe.model.embedding.norm
        case ["per_layer", "norm"]:
            return stack.norm
    return None


def _norm_at(stack: Stack, kind: str, parts: list[str]) -> RMSNorm | LayerNorm | None:
    """The norm that a layer's parameter belongs to, None when it belongs to none."""
    if len(parts) < 2 or not parts[-2].endswith("norm"):
        return None
    attention = stack.kinds[kind].attention
    if parts[-2] in ("q_a_norm", "kv_a_norm") and isinstance(attention, LatentAttention):
        return attention.latent_norm
    if parts[-2] == "out_norm":
        return attention.out_norm
    if parts[-2] in ("step_norm", "key_norm", "query_norm") and isinstance(attention, Mamba1):
        return attention.selection_norm
    if parts[-2] == "inner_norm":
        mlp = stack.kinds[kind].mlp
        return mlp.inner_norm if isinstance(mlp, GatedMLP) else None
    qk_norm = stack.kinds[kind].attention.qk_norm
    if parts[-2] in ("q_norm", "k_norm") and qk_norm is not None and qk_norm.norm is not None:
        return qk_norm.norm
    return stack.norm_of(kind)


def _orders(
    recipe: Recipe, kind: LayerKind, kind_name: str, parts: list[str], fold: RotaryFold
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The order of rows and of columns within each head, for what a rotary's fold concerns.

    Queries and keys, and the norms over their heads, are permuted alike, so that their products stay. Where V is the
    key projection's own output it is permuted with it, and so the columns of o that it meets; else o is left alone.
    """
    order = fold_order(kind.rotary, kind.attention.rotary_dim, fold)
    if order is None or parts[0] != "attention":
        return None, None
    if isinstance(kind.attention, LatentAttention):
        nope = kind.attention.nope_dim
        of_head = (*range(nope), *(nope + dimension for dimension in order))
        return {"q": of_head, "q_b": of_head, "k_rope": order}.get(parts[1]), None
    qk_norm = kind.attention.qk_norm
    if parts[1] in ("q_norm", "k_norm") and qk_norm is not None and qk_norm.over == "each_head":
        return None, order  # (heads, head_dim)
    if parts[1] == "q" and isinstance(kind.attention, MixtureAttention):
        return None, order  # (experts, rows, columns)
    if parts[1] in ("q", "k", "q_norm", "k_norm"):
        return order, None
    owner = recipe.model.kinds[kind.attention.shares_kv_with or kind_name]
    return None, order if parts[1:] == ["o", "weight"] and owner.attention.k_eq_v else None


def _stream_factor(stack: Stack, kind: str, parts: list[str], scale: float) -> float:
    """What a weight takes up of the residual stream's scale: whatever writes to the stream all of it, and matrices that
    read it without a norm (the per-layer gate; the first of each block where norms stand behind alone) undo it."""
    if scale == 1.0:
        return 1.0
    placement, owner = stack.placement_of(kind), tuple(parts[:-1])
    normed_behind = placement in (MLP_NORMED_BEHIND if parts[0].startswith("mlp") else NORMED_BEHIND)
    last_of_blocks = LAST_NORMS if normed_behind else LAST_OF_BLOCKS
    if not normed_behind and parts[0] == "mlp" and parts[-1].startswith("down"):
        mlp = stack.kinds[kind].mlp
        # of experts: behind latent ones a projection writes to the stream
        return 1.0 if isinstance(mlp, MixtureMLP) and mlp.latent_size is not None else scale
    if not normed_behind and (parts[:3] == ["mlp", "shared", "down"] or parts == ["mlp", "output_bias"]):
        return scale
    if owner in (*last_of_blocks, *BESIDE_BLOCKS):
        return scale
    readers = [("per_layer", "gate")]
    if placement == "post":
        readers += [(block, part) for block in ("attention", "state_space") for part in FIRST_OF_ATTENTION]
        readers += [("mlp", "gate"), ("mlp", "up")]
    return 1 / scale if owner in readers and parts[-1] == "weight" else 1.0


def _mlp_factor(stack: Stack, kind: str, parts: list[str], scale: float) -> float:
    """What a weight takes up of the scale inside a gated MLP: `up` all of it. A norm right behind the MLP undoes it
    (`Layer`), else `down` does."""
    if parts[:2] == ["mlp", "up"]:
        return scale
    if parts[:2] != ["mlp", "down"]:
        return 1.0
    if stack.placement_of(kind) in MLP_NORMED_BEHIND:
        return scale if parts[-1] == "bias" else 1.0
    return 1 / scale if parts[-1] == "weight" else 1.0
