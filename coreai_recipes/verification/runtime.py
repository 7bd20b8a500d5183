"""The saved package that the stages call: by the evaluator or Core AI on Linux and macOS, or by Core ML on macOS."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.decoder.model import build_decoder, table_file
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.running.adapters import inputs_beside
from coreai_recipes.running.chain import chained, functions_of
from coreai_recipes.running.engine import Engine
from coreai_recipes.running.host_caches import HostCaches
from coreai_recipes.running.program import SavedProgram, as_ours, open_engine
from coreai_recipes.running.tables import Table, Tables
from coreai_recipes.storage.chunks import (
    carried_of_packages,
    low_rank_of_packages,
    states_of_draft,
    states_of_packages,
)
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.parameters import TABLE_INPUTS, raw_tables
from coreai_recipes.storage.rows import describe_rows
from coreai_recipes.verification.calls import row_buffer
from coreai_recipes.verification.state_loss import in_float16, recurrences
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.evaluate.precision import Precision


def open_program(
    subject: Subject,
    precision: "Precision",
    without: Sequence[str] = (),
    float16_states: bool = False,
    adapter: str | None = None,
) -> SavedProgram:
    """The subject's package. On Core ML `precision` says nothing: it is the hardware's; `without` is for `engine`. Core
    AI's runtime has `float32`, by the asset's twin, and the asset as it is, either with its weights decompressed once
    where it would do so in each call. With `float16_states` the states of recurrences are float16 between calls,
    whatever the precision. `adapter` is one that lies beside it, or none.

    What it must be is the recipe's to say, not a manifest's. The evaluator streams the weights when the float32 model
    takes more than a third of free memory.
    """
    if subject.package is None:
        raise ValueError("this stage needs a package")
    engines = [_open_engine(subject, package, precision, without) for package in subject.packages]
    engine = engines[0] if len(engines) == 1 else chained(engines, [functions_of(each) for each in subject.packages])
    model, export = subject.recipe.model, subject.recipe.export
    engine = as_ours(engine, export.host, export.context, model.vocab_size)
    carried = {name: spec.shape for name, spec in carried_of_packages(subject.recipe).items()}
    names = recurrences(subject.recipe) if float16_states else {}
    tables, caches = Tables(tables_beside(subject.recipe, subject.package)), None
    if export.is_functional:
        shapes = {name: state.shape for name, state in states_of_packages(subject.recipe).items()}
        caches = HostCaches(shapes, states_of_draft(subject.recipe))
    ports = {name: shape for spec in low_rank_of_packages(subject.recipe) for name, shape in spec.inputs.items()}
    inputs = inputs_beside(subject.package, ports, adapter)
    buffer, vocab_size = row_buffer(subject.recipe), model.vocab_size
    return SavedProgram(
        engine, tables, carried, lambda given: in_float16(given, names), caches, buffer, inputs, vocab_size
    )


def _open_engine(subject: Subject, package: Path, precision: "Precision", without: Sequence[str]) -> Engine:
    """One package; all precisions of the evaluator share what was read of it."""
    if subject.runtime == "coreml":
        return open_engine(package, subject.runtime, subject.recipe.export.compute_units)
    if subject.runtime == "coreai":
        from coreai_recipes.running.coreai import CoreAIProgram

        widened, dense = precision == "float32", subject.runs_dense
        return CoreAIProgram(package, subject.recipe.export.context, widened, dense)
    from coreai_recipes.evaluate import Program

    if package not in subject.evaluated:
        subject.evaluated[package] = Program(package, stream_weights=not subject.fits_in_memory)
    return subject.evaluated[package].at(precision, without)


def tables_beside(recipe: Recipe, package: Path) -> dict[str, Table]:
    """The recipe's raw tables that lie beside its package, by the input that takes their rows."""
    found = {}
    for name, shape in raw_tables([build_decoder(recipe)]).shapes.items():
        said = describe_rows(Compression.of(recipe).row_storage(name, shape), shape)
        block = said["scales"]["block"] if "scales" in said else None
        found[TABLE_INPUTS[name]] = Table(package.parent / table_file(name), shape[1], said["dtype"], block)
    return found
