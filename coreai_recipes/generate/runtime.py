"""What runs the functions of a package: Core ML where it is there, else the evaluator. Both keep the states."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from coreai_recipes.coreml import CoreMLProgram, check_coreml, why_no_coreml
from coreai_recipes.errors import BundleError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.evaluate.table import Tables

RUNTIMES = ("auto", "evaluator", "coreml")


class Runtime(Protocol):
    """Calls functions by name on states that stay between calls."""

    def call(self, function: str, inputs: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """The outputs by name."""

    def reset(self) -> None:
        """Start anew, with states of zeros."""


class EvaluatorRuntime:
    """The saved program with torch, in float32."""

    def __init__(self, package: Path, tables: "Tables") -> None:
        from coreai_recipes.evaluate import Program

        self._program = Program(package, precision="float32")
        self._tables = tables
        self.reset()

    def call(self, function: str, inputs: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        return self._program.function(function)(self._tables.with_rows(function, inputs), self._states)

    def reset(self) -> None:
        self._states = self._program.make_state()


class CoreMLRuntime:
    """The saved program on the hardware, in float16. `compute_units` is the recipe's."""

    def __init__(self, package: Path, compute_units: str, tables: "Tables") -> None:
        self._program = CoreMLProgram(package, compute_units)
        self._tables = tables
        self.reset()

    def call(self, function: str, inputs: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        return self._program.call(function, self._tables.with_rows(function, inputs), self._states)

    def reset(self) -> None:
        self._states = self._program.make_state()


def open_runtime(bundle_path: Path, manifest: Mapping[str, Any], runtime: str = "auto") -> Runtime:
    """The runtime of that name for the bundle's package. Raises UserError when it cannot be had here."""
    if runtime not in RUNTIMES:
        raise UserError(f"runtime {runtime} is not one of {', '.join(RUNTIMES)}")
    programs = [entry for entry in manifest["packages"] if entry["role"] != "table"]
    if len(programs) != 1:
        raise BundleError(f"{bundle_path}: is built as {len(programs)} packages, and only a single one can be run here")
    package = bundle_path / programs[0]["file"]
    if runtime == "coreml":
        check_coreml()
    elif runtime == "evaluator" or why_no_coreml() is not None:
        return EvaluatorRuntime(package, _open_tables(bundle_path, manifest))
    from coreai_recipes.recipe.loader import load_sealed

    units = load_sealed(bundle_path / "recipe.yaml").export.compute_units
    return CoreMLRuntime(package, units, _open_tables(bundle_path, manifest))


def _open_tables(bundle_path: Path, manifest: Mapping[str, Any]) -> "Tables":
    from coreai_recipes.evaluate.table import Tables

    return Tables.of_manifest(bundle_path, manifest["packages"])
