"""What a recipe says of its package that the format which it names does not have, by plain data alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.plain import Problem, value_at

# fields of Core ML's format alone, with what each is there
ONLY_COREML = {
    "host": "the host of another project loads Core ML's packages",
    "device": "the rules of a device are of Core ML's programs",
    "allow": "the rules that it lets pass are of Core ML's programs",
}


def format_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Why a recipe cannot be written in the format that it names; nothing where it can."""
    if value_at(recipe, "export", "format") != "coreai":
        return
    chunks = value_at(recipe, "export", "chunks")
    if chunks is not None and chunks != 1:
        yield Problem(
            ("export", "chunks"),
            "format-chunks",
            "a model in several .aimodel is not proven yet, and export.format is coreai",
            "leave out export.chunks",
        )
    if value_at(recipe, "export", "cache") == "functional":
        yield Problem(
            ("export", "cache"),
            "format-cache",
            "caches that the host keeps are not proven in an .aimodel yet, and export.format is coreai",
            "leave out export.cache",
        )
    for field, why in ONLY_COREML.items():
        if value_at(recipe, "export", field):
            yield Problem(
                ("export", field), "format-field", f"{why}, and export.format is coreai", f"leave out export.{field}"
            )
