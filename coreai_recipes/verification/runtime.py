"""What runs the saved package: the evaluator on any OS, or Core ML on macOS."""

from typing import TYPE_CHECKING

from coreai_recipes.errors import UserError
from coreai_recipes.verification.calls import SavedProgram
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.evaluate.precision import Precision


def open_program(subject: Subject, precision: "Precision") -> SavedProgram:
    """The subject's package. Weights are streamed when the float32 model takes more than a third of free memory."""
    if subject.package is None:
        raise ValueError("this stage needs a package")
    if subject.runtime != "evaluator":
        raise UserError(f"runtime {subject.runtime} cannot run this stage yet; the runtime there is: evaluator")
    from coreai_recipes.evaluate.program import Program

    return Program(subject.package, precision, stream_weights=not subject.fits_in_memory)
