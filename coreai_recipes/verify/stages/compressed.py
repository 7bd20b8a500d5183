"""Stage `compressed`: what compression costs. Nothing compresses yet."""

from coreai_recipes.verify.report import StageResult, skip
from coreai_recipes.verify.subject import Subject

NAME = "compressed"


def run(subject: Subject) -> StageResult:
    return skip(NAME, "no compression in this recipe")
