"""Folds: exact rewritings of weights as they are read, that leave the exported program less to do.

`stored_as` says for each parameter of a decoder how it differs from the checkpoint's tensor: what is added, by which
power of two it is multiplied, and in which order the dimensions of each head stand.
"""

from coreai_recipes.checkpoint.rewrite import Rewrite
from coreai_recipes.primitives.layer import Form
from coreai_recipes.primitives.rotary import fold_order
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, Recipe, RMSNorm, Stack


def stored_as(recipe: Recipe, name: str, form: Form) -> Rewrite:
    """How the decoder's parameter `name`, in `form`, comes from the checkpoint's tensor."""
    return _stored_as(recipe, recipe.model, name.split("."), form)


def draft_stored_as(recipe: Recipe, name: str, form: Form) -> Rewrite:
    """As `stored_as`, for the parameter `name` of the recipe's draft, whose own stream is never scaled."""
    if recipe.draft is None:
        raise ValueError(f"{recipe.name} has no draft")
    return _stored_as(recipe, recipe.draft, name.split("."), Form(folded=form.folded))


def _stored_as(recipe: Recipe, stack: Stack, parts: list[str], form: Form) -> Rewrite:
    if parts[0] != "layers":
        norm = stack.norm if parts[0] == "norm" or parts[:2] == ["per_layer", "norm"] else None
        return Rewrite(offset=_added(norm, parts[-1]))
    kind_name, parts = stack.layer_kinds[int(parts[1])], parts[2:]
    kind = stack.kinds[kind_name]
    norm = _norm_at(stack, kind_name, parts)
    rows, columns = _orders(recipe, kind, kind_name, parts) if form.folded else (None, None)
    factor = _stream_factor(stack, kind_name, parts, form.residual_scale)
    return Rewrite(_added(norm, parts[-1]), factor, rows, columns)


def _added(norm: RMSNorm | LayerNorm | None, leaf: str) -> float:
    """1 for the weight of a `1+w` norm: the sum is taken in float32, once."""
    return 1.0 if norm is not None and leaf == "weight" and norm.weight == "1+w" else 0.0


def _norm_at(stack: Stack, kind: str, parts: list[str]) -> RMSNorm | LayerNorm | None:
    """The norm that a layer's parameter belongs to, None when it belongs to none."""
    if len(parts) < 2 or not parts[-2].endswith("norm"):
        return None
    qk_norm = stack.kinds[kind].attention.qk_norm
    if parts[-2] in ("q_norm", "k_norm") and qk_norm is not None and qk_norm.norm is not None:
        return qk_norm.norm
    return stack.norm_of(kind)


def _orders(
    recipe: Recipe, kind: LayerKind, kind_name: str, parts: list[str]
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The order of rows and of columns within each head, for what a rotary's fold concerns.

    Queries and keys, and the norms over their heads, are permuted alike, so that their products stay. Where V is the
    key projection's own output it is permuted with it, and so the columns of o that it meets; else o is left alone.
    """
    order = fold_order(kind.rotary, kind.attention.head_dim)
    if order is None or parts[0] != "attention":
        return None, None
    if parts[1] in ("q", "k", "q_norm", "k_norm"):
        return order, None
    owner = recipe.model.kinds[kind.attention.shares_kv_with or kind_name]
    return None, order if parts[1:] == ["o", "weight"] and owner.attention.k_eq_v else None


def _stream_factor(stack: Stack, kind: str, parts: list[str], scale: float) -> float:
    """What a weight takes up of the residual stream's scale: whatever writes to the stream all of it, and the one
    matrix that reads it without a norm (the per-layer gate) undoes it."""
    if scale == 1.0:
        return 1.0
    sandwich = stack.placement_of(kind) == "sandwich"
    last_of_blocks = (
        (("attention_post_norm",), ("mlp_post_norm",)) if sandwich else (("attention", "o"), ("mlp", "down"))
    )
    if not sandwich and parts[0] == "mlp" and parts[-1].startswith("down"):
        return scale  # of experts
    if not sandwich and parts[:3] == ["mlp", "shared", "down"]:
        return scale
    writers = (*last_of_blocks, ("per_layer", "norm"))
    if tuple(parts[:-1]) in writers:
        return scale
    return 1 / scale if parts[:-1] == ["per_layer", "gate"] else 1.0
