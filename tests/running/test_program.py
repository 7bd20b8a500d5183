"""Which runtime is taken, and Core ML's with a stand-in, for no Core ML is at hand here; a bundle opened by itself."""

import platform
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest.reading import read_manifest, typed
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.running.coreml import CoreMLProgram, why_no_coreml
from coreai_recipes.running.program import SavedProgram, choose_runtime, open_program


class FakeMLModel:
    """coremltools' MLModel as far as it is used; `broken` functions do not load, as coremltools does that."""

    made: list["FakeMLModel"] = []  # noqa: RUF012
    broken: set[str] = set()  # noqa: RUF012

    def __init__(self, path: str, function_name: str, compute_units: str) -> None:
        self.path, self.function, self.units = path, function_name, compute_units
        self.seen: list[Any] = []
        if function_name in self.broken:
            warnings.warn("You will not be able to run predict(): no such engine", RuntimeWarning, stacklevel=1)
        self.made.append(self)

    def make_state(self) -> object:
        if self.function in self.broken:
            raise Exception("This model was not loaded with the Core ML Framework. Cannot get state.")
        return object()

    def predict(self, data: dict[str, Any], state: object) -> dict[str, Any]:
        assert all(isinstance(value, np.ndarray) and value.dtype == np.int32 for value in data.values())
        self.seen.append(state)
        return {"logits": np.ones((1, 1, 4), np.float16)}


def manifest_of(folder: Path) -> Manifest:
    return typed(Manifest, read_manifest(folder), "here")


@pytest.fixture
def coreml(monkeypatch: pytest.MonkeyPatch) -> type[FakeMLModel]:
    parent, models = types.ModuleType("coremltools"), types.ModuleType("coremltools.models")
    parent.ComputeUnit = {"CPU_AND_NE": "units of the engine"}  # type: ignore[attr-defined]
    models.MLModel = FakeMLModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coremltools", parent)
    monkeypatch.setitem(sys.modules, "coremltools.models", models)
    monkeypatch.setattr(FakeMLModel, "made", [])
    monkeypatch.setattr(FakeMLModel, "broken", set())
    return FakeMLModel


def test_all_functions_of_core_ml_share_one_state_until_a_reset(coreml: type[FakeMLModel]) -> None:
    runtime = SavedProgram(CoreMLProgram(Path("/b/model.mlpackage"), "cpu_and_ne"))
    runtime.reset()
    inputs = {"position": torch.tensor([3], dtype=torch.int32)}
    for function in ("prefill", "decode", "prefill"):
        assert runtime.call(function, inputs)["logits"].dtype == torch.float16
    runtime.reset()
    runtime.call("decode", inputs)
    prefill, decode = coreml.made
    assert (prefill.function, prefill.path, prefill.units) == ("prefill", "/b/model.mlpackage", "units of the engine")
    assert prefill.seen[0] is prefill.seen[1] is decode.seen[0] is not None
    assert decode.seen[1] is not decode.seen[0]


def test_a_package_that_core_ml_does_not_load_is_a_sentence(coreml: type[FakeMLModel]) -> None:
    coreml.broken.add("decode")
    runtime = SavedProgram(CoreMLProgram(Path("/b/model.mlpackage"), "cpu_and_ne"))
    with pytest.raises(BundleError) as caught:
        runtime.call("decode", {})
    assert caught.value.problems == (
        "/b/model.mlpackage: Core ML cannot load the function decode: You will not be able to run predict(): "
        "no such engine",
        "  --runtime evaluator runs it without Core ML",
    )


@pytest.mark.parametrize(
    ("system", "release", "bridge", "reason"),
    [
        ("Linux", "", True, "Core ML needs macOS, and this is Linux"),
        ("Darwin", "14.6.1", True, "Core ML's states need macOS 15, and this is macOS 14.6.1"),
        (
            "Darwin",
            "15.1",
            False,
            "this installation of coremltools lacks its Core ML bridge (coremltools.libcoremlpython)",
        ),
        ("Darwin", "26.0", True, None),
    ],
)
def test_core_ml_is_taken_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, bridge: bool, reason: str | None
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), ""))
    monkeypatch.setattr("coreai_recipes.running.coreml.find_spec", lambda name: name if bridge else None)
    assert why_no_coreml() == reason
    assert choose_runtime("evaluator") == "evaluator"
    if reason is None:
        assert choose_runtime("auto") == choose_runtime("coreml") == "coreml"
    else:
        assert choose_runtime("auto") == "evaluator"
        with pytest.raises(UserError) as caught:
            choose_runtime("coreml")
        assert caught.value.problems == (f"runtime coreml: {reason}: use --runtime evaluator",)


def test_a_runtime_that_there_is_not_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^runtime ane is not one of auto, evaluator, coreml, coreai$"):
        choose_runtime("ane")


def test_core_ml_runs_on_the_units_that_are_asked_for(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, coreml: type[FakeMLModel]
) -> None:
    monkeypatch.setattr("coreai_recipes.running.program.choose_runtime", lambda *_: "coreml")
    program = open_program(tiny_bundle, manifest_of(tiny_bundle), "auto", "cpu_and_ne")
    program.call("decode", {"position": torch.tensor([3], dtype=torch.int32)})
    (model,) = coreml.made
    assert (model.path, model.units) == (str(tiny_bundle / "model.mlpackage"), "units of the engine")


def test_a_bundle_opens_and_runs_without_the_exporter_and_without_the_recipe_language(tiny_bundle: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import torch
from coreai_recipes.manifest.reading import read_manifest, typed
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.running.program import open_program
from coreai_recipes.running.session import Session
folder = Path({str(tiny_bundle)!r})
manifest = typed(Manifest, read_manifest(folder), "here")
print(Session(open_program(folder, manifest, "evaluator"), manifest).feed(list(range(20))).shape)
rooms = {{name.split(".")[1] for name in sys.modules if name.startswith("coreai_recipes.")}}
print(*sorted(rooms), *sorted({{"coremltools.converters", "transformers", "yaml"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    rooms = "errors evaluate hosts json_reader manifest protobuf running"
    assert done.stdout == f"torch.Size([512])\n{rooms}\n", done.stderr
