"""Holds a model against transformers, stage by stage, and a saved package against the model: `run_stages(...)`.

Nothing here imports torch or transformers before a stage runs.
"""

from coreai_recipes.verification.report import Figures, Report, StageResult
from coreai_recipes.verification.run import run_stages
from coreai_recipes.verification.stages import STAGES

__all__ = ["STAGES", "Figures", "Report", "StageResult", "run_stages"]
