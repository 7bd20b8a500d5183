"""Values in a sentence or a cell."""

import json
from collections.abc import Mapping
from typing import Any

from coreai_recipes.storage.weight_files import WEIGHT_FILES


def word(value: Any) -> str:
    """A field's value in a cell."""
    return "-" if value is None else json.dumps(value) if isinstance(value, bool | list) else str(value)


def count(number: int, noun: str) -> str:
    """`1 tie`, `2 ties`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def decibels(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.1f}"


def percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['top_1']:.1f} %"


def weights_in_words(found: Mapping[str, Any]) -> str:
    """`134,515,008 weights, 8.03 bits each, 135,012,096 bytes: int8 per channel and float16`."""
    bits = f"{found['bits_per_weight']:.2f} bits each"
    return f"{found['weights']:,} weights, {bits}, {found['bytes']:,} bytes: {found['forms']}"


def weights_line(package_format: str, found: Mapping[str, Any]) -> str:
    """The same, behind the name of the file that holds them."""
    return f"{WEIGHT_FILES[package_format]}: {weights_in_words(found)}"


def milliseconds(seconds: float) -> str:
    """Three digits of a short time."""
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
