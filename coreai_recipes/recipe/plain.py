"""Plain data that may be wrong, as rules read it, and what they say of it. A leaf."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """What is wrong at one place of a recipe, and the mend when we know it."""

    location: Location
    code: str
    """Which problem it is, whatever words say it: short, stable, and what anyone decides by."""
    message: str
    hint: str | None = None
    at_key: bool = False
    """Whether the key itself is what is wrong, rather than its value."""


def value_at(data: Any, *path: str) -> Any:
    """What stands at a path, None where nothing does."""
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def mapping_at(data: Any, *path: str) -> Mapping[str, Any]:
    """The mapping at a path, an empty one where there is none."""
    found = value_at(data, *path)
    return found if isinstance(found, Mapping) else {}


def integer_at(data: Any, *path: str) -> int | None:
    """The whole number at a path, None where there is none."""
    found = value_at(data, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
