"""The key/value pairs of a GGUF file, asked for by the type that the reader needs."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from coreai_recipes.errors import CheckpointError


class Metadata:
    """A file's metadata; each getter returns `default` for an absent key and refuses a value of another type by key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    def refuse(self, key: str, reason: str) -> CheckpointError:
        """The error that says why `key` cannot be used."""
        return CheckpointError(f"{self.path}: {key} {reason}")

    def has(self, key: str) -> bool:
        return key in self.values

    def keys_under(self, prefix: str) -> list[str]:
        """The keys that begin with `prefix.`, without it."""
        return [key.removeprefix(f"{prefix}.") for key in self.values if key.startswith(f"{prefix}.")]

    def integer(self, key: str, default: int | None = None) -> int | None:
        """A count or an id; a list with one value per layer counts when all are equal."""
        value = self.values.get(key, default)
        if isinstance(value, list) and value:
            if any(other != value[0] for other in value):
                raise self.refuse(key, "differs from layer to layer, which is not supported")
            value = value[0]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise self.refuse(key, f"is {describe(value)}, not a whole number")
        return value

    def per_layer(self, key: str, layers: int, default: int | None = None, least: int = 1) -> list[int]:
        """A size for each layer, `least` or more, where one for all stands for each."""
        value = self.values.get(key, default)
        values = value if isinstance(value, list) else [value] * layers
        if value is None:
            raise self.refuse(key, "is missing")
        if len(values) != layers or not all(type(each) is int and each >= least for each in values):
            raise self.refuse(key, f"is {describe(value)}, not one size for each of {layers} layers")
        return values

    def positive(self, key: str) -> int:
        """A size that every file of the architecture must state."""
        value = self.integer(key)
        if not value:
            raise self.refuse(key, "is missing" if value is None else "is 0")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        value = self.values.get(key, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value)):
            raise self.refuse(key, f"is {describe(value)}, not a number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"is {describe(value)}, not true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self.values.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.refuse(key, f"is {describe(value)}, not a string")
        return value

    def strings(self, key: str) -> list[str] | None:
        return self._list(key, str, "texts")

    def integers(self, key: str) -> list[int] | None:
        return self._list(key, int, "whole numbers")

    def numbers(self, key: str) -> list[float] | None:
        return self._list(key, int | float, "numbers")

    def _list(self, key: str, kind: Any, plural: str) -> list[Any] | None:
        value = self.values.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
            raise self.refuse(key, f"is {describe(value)}, not a list of {plural}")
        return value


def describe(value: object) -> str:
    """`value` as a message shows it, cut short."""
    shown = repr(value[:4] if isinstance(value, list) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
