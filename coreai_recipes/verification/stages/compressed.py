"""Stage `compressed`: what compression costs. Nothing compresses yet."""

from coreai_recipes.verification.report import StageResult, skip
from coreai_recipes.verification.subject import Subject

NAME = "compressed"


def run(subject: Subject) -> StageResult:
    return skip(NAME, "no compression in this recipe")
