"""Which fields of a config transformers' source knows, by its names: `make known` generates the data.

Known to a model_type is a field whose name occurs where its config and its model are defined, or in what takes any
config; `tests/known_fields.py` says how it is found. What is known must be understood here; what is not cannot change
what transformers computes.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("known")


def is_known(model_type: str, name: str) -> bool:
    """Whether transformers' config or model of that type, or what all share, knows a field of that name."""
    modules = _source()["model_types"].get(model_type, "").split()
    return name in _words("shared") or any(name in _module(module) for module in modules)


def is_known_anywhere(name: str) -> bool:
    """Whether any config class of transformers has a field of that name, or what takes any config reads one."""
    return name in _words("every_config") or name in _words("shared")


def is_rope_key(model_type: str, rope_type: str, key: str) -> bool:
    """Whether the function of a rope_type reads a parameter, or the modules of the model_type name it."""
    modules = _source()["model_types"].get(model_type, "").split()
    return key in _source()["rope"].get(rope_type, "").split() or any(key in _module(module) for module in modules)


def is_model_type(name: str) -> bool:
    """Whether transformers has a config class for it."""
    return name in _words("every_type")


def family_of_class(architecture: str) -> str | None:
    """The model_type whose class for a next token's logits has that name, where there is a family file for it."""
    found: str | None = _source()["classes"].get(architecture)
    return found


@cache
def _source() -> Mapping[str, Any]:
    """What was read from the newest transformers that there is a file for."""
    newest = max(FOLDER.glob("*.json"), key=lambda path: [int(part) for part in path.stem.split(".") if part.isdigit()])
    content: dict[str, Any] = json.loads(newest.read_text())
    return content


@cache
def _words(key: str) -> frozenset[str]:
    return frozenset(_source()[key].split())


@cache
def _module(name: str) -> frozenset[str]:
    return frozenset(_source()["modules"][name].split())
