"""What relates the fields of `export` to one another and to the model."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from coreai_recipes.recipe.layer_order import layer_order
from coreai_recipes.recipe.plain import Location, Problem, integer_at, mapping_at, value_at
from coreai_recipes.recipe.sizes import MAX_ISLANDS, MAX_KINDS


def export_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    context = integer_at(recipe, "export", "context")
    for function in ("prefill", "score"):
        query = integer_at(recipe, "export", "functions", function)
        if context and query and query > context:
            yield Problem(
                ("export", "functions", function),
                "function-context",
                f"{function} takes {query} tokens per call, but the context is {context}",
            )
    prefill = integer_at(recipe, "export", "functions", "prefill")
    if value_at(recipe, "export", "mlp_layout") == "8x8" and prefill not in (None, 64):
        yield Problem(
            ("export", "mlp_layout"),
            "mlp-layout",
            f"8x8 needs a prefill of 64 tokens, and this one takes {prefill}",
            "set export.functions.prefill to 64, or remove mlp_layout",
        )
    if value_at(recipe, "export", "chunks", "count") and value_at(recipe, "export", "chunks", "max_bytes"):
        yield Problem(
            ("export", "chunks", "max_bytes"),
            "chunks-twice",
            "packages are cut by their count or by max_bytes, and this recipe says both",
            "remove one of them",
        )
    steps = integer_at(recipe, "draft", "steps")
    if value_at(recipe, "export", "table") == "host" and steps and steps > 1:
        yield Problem(
            ("export", "table"),
            "table-steps",
            f"the draft looks up {steps} tokens in one call, which a host cannot hand in beforehand",
            "set draft.steps to 1, or export.table to package",
        )
    for name in ("residual_scale", "mlp_scale", "head_scale"):
        scale = value_at(recipe, "export", name)
        if isinstance(scale, int | float) and 0 < scale <= 1 and math.frexp(scale)[0] != 0.5:
            near = 2.0 ** round(math.log2(scale))
            yield Problem(
                ("export", name),
                name.replace("_", "-"),
                f"{scale:g} is not a power of two: weights times it would be rounded",
                f"the nearest is {near:g}",
            )


def float32_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Names of islands that name nothing, or something twice."""
    names = value_at(recipe, "export", "float32")
    if not isinstance(names, list | tuple):
        return
    kinds, usual = mapping_at(recipe, "model", "kinds"), value_at(recipe, "model", "placement")
    placements = {value_at(kind, "placement") or usual or "pre" for kind in islice(kinds.values(), MAX_KINDS)}
    for index, name in enumerate(islice(names, MAX_ISLANDS)):
        at: Location = ("export", "float32", index)
        if name in names[:index]:
            yield Problem(at, "float32-twice", f"{name} is named twice", "remove one of them")
        elif name == "attention_norm" and placements and placements <= {"post", "add"}:
            yield Problem(
                at,
                "float32-absent",
                f"no layer has an attention_norm: with the placement {' or '.join(sorted(placements))}, attention "
                "reads the residual stream itself",
                "remove it",
            )


def residual_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    scale = value_at(recipe, "export", "residual_scale")
    if isinstance(scale, int | float) and 0 < scale < 1:
        yield from scale_problems(recipe)
    for name, problems in (("mlp_scale", mlp_scale_problems), ("head_scale", head_scale_problems)):
        scale = value_at(recipe, "export", name)
        if isinstance(scale, int | float) and 0 < scale < 1:
            yield from problems(recipe)


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
        if placement in ("post", "sandwich", "sandwich_mlp") and not has_weight:
            yield Problem(
                at,
                "residual-scale-impossible",
                f"the norms after the blocks of `{name}` have no weights that could absorb it",
            )
        elif value_at(model, "embedding", "per_layer") is not None and not has_weight:
            yield Problem(
                at,
                "residual-scale-impossible",
                f"the norm after the per-layer input of `{name}` has no weights that could absorb it",
            )
        if placement == "post" and value_at(kind, "mlp", "kind") == "moe":
            yield Problem(
                at,
                "residual-scale-impossible",
                f"the experts of `{name}` read the residual stream without a norm that would undo it",
            )
        if placement in ("add", "pre_mlp"):
            yield Problem(
                at,
                "residual-scale-impossible",
                f"the blocks of `{name}` read the residual stream without a norm that would undo it",
            )
    if value_at(model, "head", "norm") == "none":
        yield Problem(at, "residual-scale-impossible", "no norm before the head would undo it")


def mlp_scale_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Why what a recipe's MLPs multiply cannot be scaled; nothing where it can."""
    kinds = mapping_at(recipe, "model", "kinds")
    for name in dict.fromkeys(layer_order(recipe, "model")):
        kind = value_at(kinds, name, "mlp", "kind")
        if kind not in (None, "gated"):
            yield Problem(
                ("export", "mlp_scale"),
                "mlp-scale-impossible",
                f"the MLP of `{name}` is {kind}: only a gated MLP is linear in `up`",
            )
        if value_at(kinds, name, "mlp", "inner_norm") is not None:
            yield Problem(
                ("export", "mlp_scale"),
                "mlp-scale-impossible",
                f"the norm inside the MLP of `{name}` would undo it before `down` does",
            )


def head_scale_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Why what the norm before a recipe's head gives cannot be scaled; nothing where it can."""
    at, model = ("export", "head_scale"), mapping_at(recipe, "model")
    said = value_at(model, "head", "norm")
    norm = mapping_at(model, "norm") if said in (None, "model") else said
    if value_at(model, "head", "transform") is not None:
        yield Problem(at, "head-scale-impossible", "the head has a layer of its own behind the norm")
    elif not isinstance(norm, Mapping) or value_at(norm, "weight") == "none":
        yield Problem(at, "head-scale-impossible", "no norm before the head has weights that could absorb it")
    if recipe.get("draft") is not None:
        yield Problem(at, "head-scale-impossible", "the draft reads the output of that norm")
