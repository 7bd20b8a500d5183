"""The saved package that the stages call: by the evaluator on Linux and macOS, or by Core ML on macOS."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coreai_recipes.decoder.model import PER_LAYER_ROWS, PER_LAYER_TABLE, table_file
from coreai_recipes.running.program import SavedProgram, open_engine
from coreai_recipes.running.tables import Table, Tables
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.evaluate.precision import Precision


def open_program(subject: Subject, precision: "Precision", without: Sequence[str] = ()) -> SavedProgram:
    """The subject's package. On Core ML `precision` says nothing: it is the hardware's; `without` is for `engine`.

    What it must be is the recipe's to say, not a manifest's. The evaluator streams the weights when the float32 model
    takes more than a third of free memory.
    """
    if subject.package is None:
        raise ValueError("this stage needs a package")
    engine = open_engine(
        subject.package,
        subject.runtime,
        subject.recipe.export.compute_units,
        precision=precision,
        stream_weights=not subject.fits_in_memory,
        without=without,
    )
    per_layer = subject.recipe.model.embedding.per_layer
    if per_layer is None:
        return SavedProgram(engine)
    width = len(subject.recipe.model.layer_kinds) * per_layer.size
    table = Table(subject.package.parent / table_file(PER_LAYER_TABLE), width)
    return SavedProgram(engine, Tables({PER_LAYER_ROWS: table}))
