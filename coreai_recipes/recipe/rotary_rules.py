"""What relates the fields of a rotary, and of its scaling, to one another and to the rest of a recipe."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.plain import Location, Problem, integer_at, mapping_at, value_at


def rotary_problems(kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    at: Location = (*kind_at, "rotary")
    rotary = mapping_at(kind, "rotary")
    is_latent = value_at(kind, "attention", "kind") == "latent"
    size_name = "rope_dim" if is_latent else "head_dim"
    rotary_kind, head_dim, factor = rotary.get("kind"), integer_at(kind, "attention", size_name), rotary.get("factor")
    if is_latent and rotary_kind in ("partial", "proportional"):
        yield Problem(
            (*at, "kind"), "latent-rotary", "latent attention sets the rotated width by rope_dim", "use `kind: full`"
        )
    if rotary_kind in ("full", "partial", "proportional") and head_dim and head_dim % 2:
        yield Problem(
            (*kind_at, "attention", size_name),
            "head-dim-odd",
            f"{head_dim} is odd, but a rotary rotates dimensions in pairs",
        )
    if isinstance(factor, int | float) and head_dim and 0 < factor <= 1:
        if rotary_kind == "partial":
            width = int(factor * head_dim)
            if width < 2:
                yield Problem(
                    (*at, "factor"), "rotary-factor", f"{factor} of head_dim {head_dim} leaves no pair to rotate"
                )
            elif width % 2:
                yield Problem(
                    (*at, "factor"),
                    "rotary-factor",
                    f"{factor} of head_dim {head_dim} is {width} dimensions, not whole pairs",
                )
        if rotary_kind == "proportional" and int(factor * head_dim // 2) < 1:
            yield Problem((*at, "factor"), "rotary-factor", f"{factor} of head_dim {head_dim} leaves no pair to rotate")
    if "factor" in rotary and "kind" not in rotary:
        # The reason this project exists: the two have different pairs, and text stays fluent with the wrong one.
        yield Problem(
            at,
            "rotary-unsaid",
            "`factor` needs `kind: partial` or `kind: proportional`, which pair different dimensions",
            "add `kind: partial` (GPT-NeoX, Phi, GLM) or `kind: proportional` (Gemma 4)",
        )
    precision = rotary.get("precision")
    if precision in ("float16", "bfloat16") and rotary.get("lossy") is not True:
        yield Problem(
            (*at, "precision"),
            "rotary-precision",
            f"angles in {precision} lose positions (bfloat16 frequencies: cosine error 0.35 at position 200)",
            "use float32, or add `lossy: true` to accept the loss",
        )


def scaling_problems(recipe: Mapping[str, Any], kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    at: Location = (*kind_at, "rotary", "scaling")
    scaling = mapping_at(kind, "rotary", "scaling")
    for low_end, high_end, between, may_meet in (
        ("low_freq_factor", "high_freq_factor", "smooth transition", True),  # Llama 4's do: nothing lies between them
        ("beta_slow", "beta_fast", "ramp", False),
    ):
        low, high = scaling.get(low_end), scaling.get(high_end)
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            continue
        if low > high or (low == high and not may_meet):
            said = "above" if may_meet else "not below"
            yield Problem(
                (*at, low_end),
                "scaling-order",
                f"{low:g} is {said} {high_end} {high:g}: between them lies the {between}",
            )
    width = _rotated_width(kind)
    for name in ("short_factor", "long_factor"):
        factors = scaling.get(name)
        if isinstance(factors, list) and width and width % 2 == 0 and len(factors) != width // 2:
            yield Problem(
                (*at, name), "scaling-factors", f"{len(factors)} factors for the {width // 2} pairs that turn"
            )
    if scaling.get("kind") in ("dynamic", "ntk") and width == 2:
        yield Problem((*at, "kind"), "scaling-single-pair", "a single pair has no frequency that theta could change")
    if scaling.get("kind") == "yarn" and value_at(kind, "rotary", "theta") == 1:
        yield Problem(
            (*kind_at, "rotary", "theta"),
            "scaling-theta",
            "1 rotates every pair alike, so there is no ramp between them",
        )
    trained, context = integer_at(scaling, "original_context"), integer_at(recipe, "export", "context")
    if scaling.get("kind") == "dynamic" and trained and context and context > trained:
        yield Problem(
            at,
            "scaling-context",
            f"context {context} exceeds the trained {trained}: beyond it frequencies change with a text's length, "
            "and keys in the cache were rotated by the earlier ones",
            f"set export.context to {trained} or less, or use a fixed scaling: yarn, longrope, linear",
        )


def _rotated_width(kind: Mapping[str, Any]) -> int | None:
    """How many dimensions of a head a full or partial rotary turns, None when the kind does not say."""
    size_name = "rope_dim" if value_at(kind, "attention", "kind") == "latent" else "head_dim"
    head_dim, factor = integer_at(kind, "attention", size_name), value_at(kind, "rotary", "factor")
    if value_at(kind, "rotary", "kind") == "partial":
        return int(factor * head_dim) if head_dim and isinstance(factor, int | float) and 0 < factor <= 1 else None
    return head_dim
