"""Dotted paths into nested mappings. A leaf."""

from collections.abc import Mapping
from typing import Any


def get_path(data: Any, path: str) -> Any:
    """What lies at `attention.scale`, None when nothing does."""
    for step in path.split("."):
        data = data.get(step) if isinstance(data, Mapping) else None
    return data


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` at a path, with the mappings that lead to it."""
    *parents, leaf = path.split(".")
    for step in parents:
        data = data.setdefault(step, {})
    data[leaf] = value


def flatten(data: Any, lead: str = "") -> dict[str, Any]:
    """Every scalar and list by its path; an empty mapping is nothing."""
    if not isinstance(data, Mapping):
        return {lead: data}
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flatten(value, f"{lead}.{key}" if lead else str(key))
    return found
