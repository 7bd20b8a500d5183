"""Runs a saved ML Program with torch, without Core ML: `Program(path).function("decode")(inputs, state)`.

It knows the MIL protobuf and nothing of recipes or of our modules, so that what it finds is true of the saved file.
"""

from typing import TYPE_CHECKING

from coreai_recipes.evaluate.errors import EvaluationError

if TYPE_CHECKING:
    from coreai_recipes.evaluate.function import Function
    from coreai_recipes.evaluate.program import Program

__all__ = ["EvaluationError", "Function", "Program"]


def __getattr__(name: str) -> object:
    """Import torch and coremltools only when a program is opened: the command line must start at once."""
    if name == "Program":
        from coreai_recipes.evaluate.program import Program

        return Program
    if name == "Function":
        from coreai_recipes.evaluate.function import Function

        return Function
    raise AttributeError(f"module {__name__} has no attribute {name}")
