"""What runs the functions of a package: Core ML where it is there, else the evaluator. Both keep the states."""

import platform
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from coreai_recipes.errors import BundleError, UserError

if TYPE_CHECKING:
    from torch import Tensor

RUNTIMES = ("auto", "evaluator", "coreml")
STATES_SINCE = 15  # macOS, whose Core ML has states from then on


class Runtime(Protocol):
    """Calls functions by name on states that stay between calls."""

    def call(self, function: str, inputs: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """The outputs by name."""

    def reset(self) -> None:
        """Start anew, with states of zeros."""


class EvaluatorRuntime:
    """The saved program with torch, in float32."""

    def __init__(self, package: Path) -> None:
        from coreai_recipes.evaluate import Program

        self._program = Program(package, precision="float32")
        self.reset()

    def call(self, function: str, inputs: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        return self._program.function(function)(inputs, self._states)

    def reset(self) -> None:
        self._states = self._program.make_state()


class CoreMLRuntime:
    """Core ML through coremltools. `compute_units` is the recipe's: cpu_and_ne, cpu_and_gpu, cpu_only or all."""

    def __init__(self, package: Path, compute_units: str) -> None:
        self._package = package
        self._compute_units = compute_units
        self._models: dict[str, Any] = {}
        self._states: Any = None

    def call(self, function: str, inputs: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        import torch

        model = self._model(function)
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        return {name: torch.from_numpy(value) for name, value in model.predict(given, state=self._states).items()}

    def reset(self) -> None:
        self._states = next(iter(self._models.values())).make_state() if self._models else None

    def _model(self, function: str) -> Any:
        """The function, loaded at its first call. All functions declare the same states, so one object serves them."""
        if function not in self._models:
            from coremltools import ComputeUnit
            from coremltools.models import MLModel

            units = ComputeUnit[self._compute_units.upper()]
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model = MLModel(str(self._package), function_name=function, compute_units=units)
            try:
                states = model.make_state()
            except Exception as error:  # coremltools raises no narrower class, and said the reason in a warning
                reason = " ".join(str(each.message) for each in said if each.category is RuntimeWarning) or str(error)
                raise BundleError(
                    f"{self._package}: Core ML does not load the function {function}: {reason}",
                    "  --runtime evaluator runs it without Core ML",
                ) from None
            self._models[function] = model
            self._states = states if self._states is None else self._states
        return self._models[function]


def open_runtime(bundle_path: Path, manifest: Mapping[str, Any], runtime: str = "auto") -> Runtime:
    """The runtime of that name for the bundle's package. Raises UserError when it cannot be had here."""
    if runtime not in RUNTIMES:
        raise UserError(f"runtime {runtime} is not one of {', '.join(RUNTIMES)}")
    packages = manifest["packages"]
    if len(packages) != 1:
        raise BundleError(f"{bundle_path}: is built as {len(packages)} packages, and only a single one can be run here")
    package = bundle_path / packages[0]["file"]
    missing = why_no_coreml() if runtime != "evaluator" else None
    if runtime == "coreml" and missing is not None:
        raise UserError(f"runtime coreml: {missing}: use --runtime evaluator")
    if runtime == "evaluator" or missing is not None:
        return EvaluatorRuntime(package)
    from coreai_recipes.recipe import load_recipe

    return CoreMLRuntime(package, load_recipe(bundle_path / "recipe.yaml").export.compute_units)


def why_no_coreml() -> str | None:
    """Why Core ML cannot run a program with states on this machine; None when it can."""
    if platform.system() != "Darwin":
        return f"Core ML is on macOS only, this is {platform.system()}"
    release = platform.mac_ver()[0]
    if int(release.partition(".")[0] or 0) < STATES_SINCE:
        return f"Core ML has states since macOS {STATES_SINCE}, this is macOS {release}"
    if find_spec("coremltools.libcoremlpython") is None:
        return "this installation of coremltools lacks its Core ML bridge (coremltools.libcoremlpython)"
    return None
