"""What a recipe says of its package that the format which it names cannot have, by plain data alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.plain import Problem, value_at


def format_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Why a recipe cannot be written in the format that it names; nothing where it can."""
    if value_at(recipe, "export", "format") != "coreai":
        return
    chunks = value_at(recipe, "export", "chunks")
    if chunks is not None and chunks != 1:
        yield Problem(
            ("export", "chunks"),
            "format-chunks",
            "chunks keep below what a phone's Core ML loads, and export.format is coreai, which has no such limit "
            "known",
            "leave out export.chunks",
        )
    if value_at(recipe, "export", "cache") == "functional":
        yield Problem(
            ("export", "cache"),
            "format-cache",
            "caches that the host keeps are not proven in an .aimodel yet, and export.format is coreai",
            "leave out export.cache",
        )
    if value_at(recipe, "export", "rotary_op") == "composite" and value_at(recipe, "export", "fold") is False:
        yield Problem(
            ("export", "rotary_op"),
            "rotary-op-fold",
            "composite turns heads whose dimensions are permuted, and export.fold is false",
            "set fold to true, or rotary_op to plain",
        )
