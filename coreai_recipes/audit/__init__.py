"""How large and how small the values of a program become: `recipe audit`.

A package is run on several prompts, in float32 for its ranges and with the engine's habits for what they make of it.
What is found goes into the bundle (audit.json), and what follows from it into a recipe.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coreai_recipes.audit.auditing import Audited, audit_bundle, audit_recipe

__all__ = ["Audited", "audit_bundle", "audit_recipe"]


def __getattr__(name: str) -> object:
    """torch is imported when something is audited: the command line must start at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from coreai_recipes.audit import auditing

    return getattr(auditing, name)
