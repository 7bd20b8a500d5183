"""A bundle measured by Core ML: here by a stand-in for coremltools, which says what it was asked."""

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coreai_recipes.errors import UserError
from coreai_recipes.manifest.reading import read_manifest, typed
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.running.measuring import measure


class MLCPUComputeDevice: ...


class MLNeuralEngineComputeDevice: ...


class Model:
    """coremltools' MLModel as far as it is used."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, path: str, function_name: str, compute_units: str) -> None:
        self.name = function_name

    def make_state(self) -> object:
        return object()

    def predict(self, data: dict[str, Any], state: object) -> dict[str, Any]:
        self.calls.append({"function": self.name, **data})
        return {"logits": np.ones((1, 1, 4), np.float16)}

    def get_compiled_model_path(self) -> str:
        return f"/compiled/{self.name}"


class Plan:
    """MLComputePlan: a gather on the CPU, all else on the engine, constants nowhere."""

    def __init__(self) -> None:
        operations = [
            SimpleNamespace(operator_name=name) for name in ("const", "ios18.gather", "ios18.conv", "ios18.add")
        ]
        function = SimpleNamespace(block=SimpleNamespace(operations=operations))
        functions = {"decode": function, "prefill": function}
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions=functions))

    @classmethod
    def load_from_path(cls, path: str, compute_units: str) -> "Plan":
        assert path.startswith("/compiled/")
        return cls()

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        unit = MLCPUComputeDevice() if "gather" in operation.operator_name else MLNeuralEngineComputeDevice()
        return SimpleNamespace(preferred_compute_device=unit)


@pytest.fixture
def core_ml(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("coremltools", "coremltools.models", "coremltools.models.compute_plan")
    parent, models, plans = (types.ModuleType(name) for name in names)
    parent.ComputeUnit = {"CPU_AND_NE": "the engine"}  # type: ignore[attr-defined]
    models.MLModel, plans.MLComputePlan = Model, Plan  # type: ignore[attr-defined]
    for module in (parent, models, plans):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("coreai_recipes.running.measuring.check_coreml", lambda: None)
    monkeypatch.setattr("coreai_recipes.running.program.choose_runtime", lambda *_: "coreml")
    monkeypatch.setattr(Model, "calls", [])


def test_each_function_is_called_and_its_operations_are_counted_by_unit(tiny_bundle: Path, core_ml: None) -> None:
    manifest = typed(Manifest, read_manifest(tiny_bundle), "here")
    found = measure(tiny_bundle, manifest, "cpu_and_ne", calls=3)
    assert found.keys() == {"decode", "prefill"}
    for called in found.values():
        assert called["placed"] == {"engine": 2, "cpu": 1}
        assert called["calls"] == 3
        assert called["median_ms"] > 0
    assert [call["function"] for call in Model.calls] == ["decode"] * 4 + ["prefill"] * 4
    prefill = Model.calls[-1]
    assert prefill["input_ids"].shape == (1, manifest.functions["prefill"].query)
    assert prefill["count"].tolist() == [manifest.functions["prefill"].query]


def test_without_core_ml_nothing_is_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreai_recipes.running.coreml.platform.system", lambda: "Linux")
    with pytest.raises(UserError, match="Core ML needs macOS, and this is Linux"):
        measure(tiny_bundle, typed(Manifest, read_manifest(tiny_bundle), "here"), "cpu_and_ne")
