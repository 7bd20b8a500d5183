"""Core ML through coremltools, on macOS only: the functions of a saved package, on states that they share."""

import platform
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError, UserError

if TYPE_CHECKING:
    from torch import Tensor

STATES_SINCE = 15  # macOS, whose Core ML has states from then on


@dataclass
class States:
    """Core ML's state object, zeros that the first function to run makes. All functions declare the same states."""

    made: Any = None


class CoreMLFunction:
    """A loaded function, of which nothing but the outputs can be watched."""

    overflowed: Collection[str] = ()
    nans: Collection[str] = ()

    def __init__(self, model: Any) -> None:
        self._model = model

    @property
    def compiled(self) -> str:
        """The folder of the compiled model."""
        return str(self._model.get_compiled_model_path())

    def __call__(self, inputs: Mapping[str, Any], state: States, watch: Any = None) -> dict[str, "Tensor"]:
        """The outputs by name; `state` goes on."""
        import torch

        if watch is not None:
            raise ValueError("Core ML shows no tensors inside the package")
        if state.made is None:
            state.made = self._model.make_state()
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        return {name: torch.from_numpy(value) for name, value in self._model.predict(given, state=state.made).items()}


class CoreMLProgram:
    """The functions of a package by name. `compute_units` is the recipe's: cpu_and_ne, cpu_and_gpu, cpu_only or all."""

    def __init__(self, package: Path, compute_units: str) -> None:
        self._package = package
        self.compute_units = compute_units
        self._functions: dict[str, CoreMLFunction] = {}

    def function(self, name: str) -> CoreMLFunction:
        """Loaded at the first request. Raises BundleError when Core ML does not load it."""
        if name not in self._functions:
            self._functions[name] = CoreMLFunction(self._load(name))
        return self._functions[name]

    def make_state(self) -> States:
        return States()

    def _load(self, function: str) -> Any:
        """The function as coremltools has it. That it was not loaded shows only when it is asked for a state."""
        from coremltools import ComputeUnit
        from coremltools.models import MLModel

        units = ComputeUnit[self.compute_units.upper()]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = MLModel(str(self._package), function_name=function, compute_units=units)
        try:
            model.make_state()
        except Exception as error:  # coremltools raises no narrower class, and said the reason in a warning
            reason = " ".join(str(each.message) for each in said if each.category is RuntimeWarning) or str(error)
            raise BundleError(
                f"{self._package}: Core ML cannot load the function {function}: {reason}",
                "  --runtime evaluator runs it without Core ML",
            ) from None
        return model


def check_coreml() -> None:
    """Raise UserError when Core ML cannot run a program on this machine."""
    reason = why_no_coreml()
    if reason is not None:
        raise UserError(f"runtime coreml: {reason}: use --runtime evaluator")


def why_no_coreml() -> str | None:
    """Why Core ML cannot run a program with states on this machine; None when it can."""
    if platform.system() != "Darwin":
        return f"Core ML needs macOS, and this is {platform.system()}"
    release = platform.mac_ver()[0]
    if int(release.partition(".")[0] or 0) < STATES_SINCE:
        return f"Core ML's states need macOS {STATES_SINCE}, and this is macOS {release}"
    if find_spec("coremltools.libcoremlpython") is None:
        return "this installation of coremltools lacks its Core ML bridge (coremltools.libcoremlpython)"
    return None
