"""What relates the fields of `export` to one another and to the model."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.layer_order import layer_order
from coreai_recipes.recipe.plain import Problem, integer_at, mapping_at, value_at


def export_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    context = integer_at(recipe, "export", "context")
    for function in ("prefill", "score"):
        query = integer_at(recipe, "export", "functions", function)
        if context and query and query > context:
            yield Problem(
                ("export", "functions", function),
                "function-context",
                f"{function} takes {query} tokens at a call, the context holds {context}",
            )
    prefill = integer_at(recipe, "export", "functions", "prefill")
    if value_at(recipe, "export", "mlp_layout") == "8x8" and prefill not in (None, 64):
        yield Problem(
            ("export", "mlp_layout"),
            "mlp-layout",
            f"8x8 is for a prefill of 64 tokens, and this one takes {prefill}",
            "set export.functions.prefill to 64, or leave mlp_layout out",
        )
    scale = value_at(recipe, "export", "residual_scale")
    if isinstance(scale, int | float) and 0 < scale <= 1 and math.frexp(scale)[0] != 0.5:
        near = 2.0 ** round(math.log2(scale))
        yield Problem(
            ("export", "residual_scale"),
            "residual-scale",
            f"{scale:g} is not a power of two: weights times it would be rounded",
            f"the nearest is {near:g}",
        )


def residual_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    scale = value_at(recipe, "export", "residual_scale")
    if isinstance(scale, int | float) and 0 < scale < 1:
        yield from scale_problems(recipe)


def scale_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Why a recipe's residual stream cannot be scaled; nothing where it can.

    What reads a scaled stream undoes the scale by its norm; what writes to it takes it up in weights.
    """
    at = ("export", "residual_scale")
    kinds, model = mapping_at(recipe, "model", "kinds"), mapping_at(recipe, "model")
    for name in dict.fromkeys(layer_order(recipe, "model")):
        kind = mapping_at(kinds, name)
        placement = value_at(kind, "placement") or model.get("placement") or "pre"
        has_weight = value_at(mapping_at(kind, "norm") or model.get("norm"), "weight") != "none"
        if placement in ("post", "sandwich") and not has_weight:
            yield Problem(
                at, "residual-scale-impossible", f"the norms behind the blocks of `{name}` have no weight to take it up"
            )
        elif value_at(model, "embedding", "per_layer") is not None and not has_weight:
            yield Problem(
                at,
                "residual-scale-impossible",
                f"the norm behind the per-layer input of `{name}` has no weight to take it up",
            )
        if placement == "post" and value_at(kind, "mlp", "kind") == "moe":
            yield Problem(
                at,
                "residual-scale-impossible",
                f"the experts of `{name}` read the residual stream without a norm that would undo it",
            )
        if placement == "add":
            yield Problem(
                at,
                "residual-scale-impossible",
                f"the blocks of `{name}` read the residual stream without a norm that would undo it",
            )
    if value_at(model, "head", "norm") == "none":
        yield Problem(at, "residual-scale-impossible", "no norm before the head would undo it")
