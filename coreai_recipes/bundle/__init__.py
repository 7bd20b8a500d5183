"""A bundle: `opened` as what it says it is, `building` from a recipe and a checkpoint, `proving` against transformers.

Nothing is imported before it is asked for: what opens a bundle needs nothing of what builds one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreai_recipes.bundle.building import OverBudget, VerificationError, build
    from coreai_recipes.bundle.opened import Bundle
    from coreai_recipes.bundle.proving import verify
    from coreai_recipes.bundle.ruling import RuleError
    from coreai_recipes.bundle.sources import find_checkpoint, find_sources

_HOMES = {
    "Bundle": "opened",
    "OverBudget": "building",
    "RuleError": "ruling",
    "VerificationError": "building",
    "build": "building",
    "find_checkpoint": "sources",
    "find_sources": "sources",
    "verify": "proving",
}

__all__ = [
    "Bundle",
    "OverBudget",
    "RuleError",
    "VerificationError",
    "build",
    "find_checkpoint",
    "find_sources",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
