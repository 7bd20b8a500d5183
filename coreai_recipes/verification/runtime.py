"""What runs the saved package: the evaluator on Linux and macOS, or Core ML on macOS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from coreai_recipes.coreml import CoreMLProgram, States
from coreai_recipes.evaluate.table import Table, Tables
from coreai_recipes.model import PER_LAYER_ROWS, PER_LAYER_TABLE, table_file
from coreai_recipes.verification.calls import SavedFunction, SavedProgram
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.evaluate.precision import Precision


def open_program(subject: Subject, precision: "Precision", without: Sequence[str] = ()) -> SavedProgram:
    """The subject's package. On Core ML `precision` says nothing: it is the hardware's; `without` is for `engine`.

    The evaluator streams the weights when the float32 model takes more than a third of free memory.
    """
    if subject.package is None:
        raise ValueError("this stage needs a package")
    program = _open(subject, subject.package, precision, without)
    per_layer = subject.recipe.model.embedding.per_layer
    if per_layer is None:
        return program
    width = len(subject.recipe.model.layer_kinds) * per_layer.size
    table = Table(subject.package.parent / table_file(PER_LAYER_TABLE), width)
    return _WithRows(program, Tables({PER_LAYER_ROWS: table}))


def _open(subject: Subject, package: Path, precision: "Precision", without: Sequence[str]) -> SavedProgram:
    if subject.runtime == "coreml":
        return OnCoreML(CoreMLProgram(package, subject.recipe.export.compute_units))
    from coreai_recipes.evaluate.program import Program

    return Program(package, precision, stream_weights=not subject.fits_in_memory, without=without)


@dataclass(frozen=True)
class _WithRows:
    """A program whose functions are handed the rows of their tokens."""

    program: SavedProgram
    tables: Tables

    def function(self, name: str) -> SavedFunction:
        found = self.program.function(name)

        def run(inputs: Mapping[str, Any], *arguments: Any, **named: Any) -> dict[str, Tensor]:
            return found(self.tables.with_rows(name, inputs), *arguments, **named)

        for noted in ("overflowed", "nans"):
            setattr(run, noted, getattr(found, noted, ()))
        return run

    def make_state(self) -> Any:
        return self.program.make_state()


@dataclass(frozen=True)
class OnCoreML:
    """Core ML as a SavedProgram of which nothing but the outputs can be watched."""

    program: CoreMLProgram

    def function(self, name: str) -> SavedFunction:
        def run(
            inputs: Mapping[str, Any],
            state: States,
            watch: Callable[[str, Tensor, str], None] | None = None,
            watch_names: set[str] | None = None,
        ) -> dict[str, Tensor]:
            if watch is not None:
                raise ValueError("Core ML shows nothing inside")
            return self.program.call(name, inputs, state)

        return run

    def make_state(self) -> States:
        return self.program.make_state()
