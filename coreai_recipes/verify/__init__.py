"""Holds a model against transformers, stage by stage, and a saved package against the model: `run_stages(...)`.

Nothing here imports torch or transformers before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coreai_recipes.verify.report import Report, StageResult

if TYPE_CHECKING:
    from coreai_recipes.verify.run import STAGES, run_stages

__all__ = ["STAGES", "Report", "StageResult", "run_stages"]


def __getattr__(name: str) -> Any:
    if name not in ("STAGES", "run_stages"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("coreai_recipes.verify.run"), name)
