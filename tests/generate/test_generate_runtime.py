"""Which runtime is taken, and Core ML's with a stand-in: no Core ML is at hand here."""

import platform
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreai_recipes.coreml import why_no_coreml
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.evaluate.table import Tables
from coreai_recipes.generate.runtime import CoreMLRuntime, open_runtime

MANIFEST = {"packages": [{"file": "model.mlpackage", "role": "all"}]}


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
    runtime = CoreMLRuntime(Path("/b/model.mlpackage"), "cpu_and_ne", Tables({}))
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
    runtime = CoreMLRuntime(Path("/b/model.mlpackage"), "cpu_and_ne", Tables({}))
    with pytest.raises(BundleError) as caught:
        runtime.call("decode", {})
    assert caught.value.problems == (
        "/b/model.mlpackage: Core ML does not load the function decode: You will not be able to run predict(): "
        "no such engine",
        "  --runtime evaluator runs it without Core ML",
    )


@pytest.mark.parametrize(
    ("system", "release", "bridge", "reason"),
    [
        ("Linux", "", True, "Core ML is on macOS only, this is Linux"),
        ("Darwin", "14.6.1", True, "Core ML has states since macOS 15, this is macOS 14.6.1"),
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, release: str, bridge: bool, reason: str | None
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), ""))
    monkeypatch.setattr("coreai_recipes.coreml.find_spec", lambda name: name if bridge else None)
    monkeypatch.setattr("coreai_recipes.generate.runtime.EvaluatorRuntime", lambda package, _: ("evaluator", package))
    recipe = Path(__file__).parents[2] / "recipes/tiny-llama.yaml"
    (tmp_path / "recipe.yaml").write_text(recipe.read_text())
    package = tmp_path / "model.mlpackage"
    assert why_no_coreml() == reason
    assert open_runtime(tmp_path, MANIFEST, "evaluator") == ("evaluator", package)
    if reason is None:
        for name in ("auto", "coreml"):
            taken = open_runtime(tmp_path, MANIFEST, name)
            assert isinstance(taken, CoreMLRuntime)
            assert taken._program._compute_units == "cpu_and_ne"
    else:
        assert open_runtime(tmp_path, MANIFEST, "auto") == ("evaluator", package)
        with pytest.raises(UserError) as caught:
            open_runtime(tmp_path, MANIFEST, "coreml")
        assert caught.value.problems == (f"runtime coreml: {reason}: use --runtime evaluator",)


def test_what_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^runtime ane is not one of auto, evaluator, coreml$"):
        open_runtime(tmp_path, MANIFEST, "ane")
    with pytest.raises(BundleError, match="is built as 2 packages, and only a single one can be run here"):
        open_runtime(tmp_path, {"packages": [{"role": "embed"}, {"role": "layers"}]})
