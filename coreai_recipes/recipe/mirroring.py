"""Which recipes can have mirrored norms (`export.norm`), by plain data alone, as `rules`."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from coreai_recipes.recipe.plain import Location, Problem, mapping_at, value_at
from coreai_recipes.recipe.sizes import MAX_KINDS

LEAST = 2.0**-24  # float16 holds nothing smaller, and an operation of its own has eps as a number of float16
AT: Location = ("export", "norm")


def mirror_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Why RMS norms cannot be layer norms of (x, -x); nothing where they can."""
    if value_at(recipe, "export", "norm") != "mirrored":
        return
    stream, others = _norms(recipe)
    if stream + others and not any(norm.get("kind") == "rms" for norm in stream + others):
        yield Problem(
            AT,
            "norm-mirrored",
            "every norm is a layer norm already, so none can be mirrored",
            "leave `norm: mirrored` out",
        )
    scale = value_at(recipe, "export", "residual_scale")
    if scale == "auto":
        yield Problem(
            AT,
            "norm-mirrored",
            "a mirrored norm's eps depends on the residual scale, which is `auto`",
            "build without it first, and set export.residual_scale to the value it finds",
        )
    factor = scale**2 if isinstance(scale, int | float) and 0 < scale <= 1 else 1.0
    found = [(norm.get("eps"), factor) for norm in stream] + [(norm.get("eps"), 1.0) for norm in others]
    eps = min((eps * factor for eps, factor in found if isinstance(eps, int | float)), default=LEAST)
    if 0 < eps < LEAST:
        yield Problem(
            AT,
            "norm-mirrored",
            f"an eps of {eps:g}, the residual scale's square in it, is below {LEAST:g}, the least that float16 has",
            "remove `norm: mirrored`, or use a larger export.residual_scale",
        )


def _norms(recipe: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Those that read the residual stream, which are scaled with it, and others."""
    stream, others = [mapping_at(recipe, "model", "norm")], [mapping_at(recipe, "draft", "norm")]
    for stack, norms in (("model", stream), ("draft", others)):
        for kind in islice(mapping_at(recipe, stack, "kinds").values(), MAX_KINDS):
            norms.append(mapping_at(kind, "norm"))
            others.append(mapping_at(kind, "attention", "qk_norm", "norm"))
            others += [mapping_at(kind, "attention", name) for name in ("out_norm", "selection_norm")]
            others.append(mapping_at(kind, "mlp", "inner_norm"))
    return [norm for norm in stream if norm], [norm for norm in others if norm]
