"""Holds a model against transformers, stage by stage, and a saved package against the model: `run_stages(...)`.

Nothing here imports torch or transformers before a stage runs.
"""

from coreai_recipes.verification.report import Figures, Report, StageResult
from coreai_recipes.verification.run import STAGES, run_stages

__all__ = ["STAGES", "Figures", "Report", "StageResult", "run_stages"]
