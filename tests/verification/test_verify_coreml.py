"""`--runtime coreml` with a stand-in for MLModel that evaluates the package: no Core ML is at hand here."""

import platform
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from verify_cases import Export, Saved

from coreai_recipes.errors import UserError
from coreai_recipes.evaluate import Program
from coreai_recipes.report.verdict import print_report
from coreai_recipes.verification import Report, run_stages
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.reference_rotary import UnknownStructure

NOTHING_INSIDE = "Core ML shows no tensors inside the package; its logits are in package_float16"


class FakeMLModel:
    """A function of a package as coremltools gives it, in float16."""

    made: list["FakeMLModel"] = []  # noqa: RUF012
    program: Program | None = None
    add: dict[str, float] = {}  # noqa: RUF012  # to the logits of a function

    def __init__(self, path: str, function_name: str, compute_units: str) -> None:
        type(self).program = self.program or Program(path, "rounded")
        self.function, self.units = function_name, compute_units
        self.states: list[int] = []
        self.made.append(self)

    def make_state(self) -> dict[str, torch.Tensor]:
        assert self.program
        return self.program.make_state()

    def predict(self, data: dict[str, Any], state: dict[str, torch.Tensor]) -> dict[str, Any]:
        assert self.program
        assert all(isinstance(value, np.ndarray) for value in data.values())
        self.states.append(id(state))
        logits = self.program.function(self.function)(data, state)["logits"] + self.add.get(self.function, 0)
        return {"logits": logits.to(torch.float16).numpy()}


@pytest.fixture(scope="module")
def qwen3_package(saved: Callable[[str], Saved], export: Export) -> Path:
    """Exported before `coreml` hides coremltools."""
    return export(*saved("qwen3"))


@pytest.fixture
def coreml(monkeypatch: pytest.MonkeyPatch) -> type[FakeMLModel]:
    from transformers import AutoModelForCausalLM  # noqa: F401  before the platform is another than what it loads on

    parent, models = types.ModuleType("coremltools"), types.ModuleType("coremltools.models")
    parent.ComputeUnit = {"CPU_AND_NE": "units of the engine"}  # type: ignore[attr-defined]
    models.MLModel = FakeMLModel  # type: ignore[attr-defined]
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.0", ("", "", ""), "arm64"))
    monkeypatch.setattr("coreai_recipes.running.coreml.find_spec", lambda name: name)
    monkeypatch.setattr(FakeMLModel, "made", [])
    monkeypatch.setattr(FakeMLModel, "program", None)
    monkeypatch.setattr(FakeMLModel, "add", {})
    monkeypatch.setitem(sys.modules, "coremltools", parent)
    monkeypatch.setitem(sys.modules, "coremltools.models", models)
    return FakeMLModel


def run(saved: Saved, package: Path) -> Report:
    return run_stages(*saved, package, stages=["package", "package_float16"], runtime="coreml")


def test_the_package_runs_once_on_core_ml(
    tiny_llama: Saved, tiny_package: Path, coreml: type[FakeMLModel], capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tiny_llama, tiny_package)
    package, halves = report.stages
    assert (package.passed, package.skipped) == (None, NOTHING_INSIDE)
    assert halves.passed, halves.to_json()
    detail = halves.detail
    assert (detail["runtime"], detail["compute_units"], detail["overflowed"]) == ("coreml", "cpu_and_ne", [])
    assert not {"rounded", "strict"} & detail.keys()
    assert detail["coreml"]["psnr_db"] == pytest.approx(halves.psnr_db, abs=0.01)
    assert detail["coreml"]["calls"] == "prefill 16, " * 8 + "prefill 15 of 16, 57 x decode"
    assert halves.floor_db == pytest.approx(detail["transformers_float16"]["psnr_db"] - 3, abs=0.01)
    assert {model.function: model.units for model in coreml.made} == dict.fromkeys(
        ("prefill", "decode"), "units of the engine"
    )
    assert len({state for model in coreml.made for state in model.states}) == 1, "the functions share their states"
    print_report(report.to_json())
    printed = capsys.readouterr().out
    assert "on Core ML (cpu_and_ne): prefill 16, " in printed
    assert printed.endswith("not covered: placement\n")


def test_core_ml_runs_score_too(
    saved: Callable[[str], Saved],
    qwen3_package: Path,
    coreml: type[FakeMLModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qwen3 = saved("qwen3")
    right = run(qwen3, qwen3_package).stages[1]
    assert right.detail["coreml"]["calls"].endswith("score 4 of 5 from position 60")
    assert right.detail["coreml"]["rows"] == right.detail["transformers_float16"]["rows"] > 4
    monkeypatch.setattr(coreml, "add", {"score": 0.5})
    wrong = run(qwen3, qwen3_package).stages[1]
    assert (right.passed, wrong.passed) == (True, False)
    assert wrong.detail["first_below"]["tensor"] == "logits"


def test_what_overflows_on_core_ml_is_named(
    tiny_llama: Saved, tiny_package: Path, coreml: type[FakeMLModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreml, "add", {"decode": float("inf")})
    result = run(tiny_llama, tiny_package).stages[1]
    assert result.passed is False
    assert result.detail["first_below"]["tensor"] == "logits of decode (coreml)"


def test_without_core_ml_nothing_starts(tiny_llama: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(UserError) as caught:
        run_stages(*tiny_llama, None, runtime="coreml", on_progress=lambda *_: pytest.fail("a stage has begun"))
    assert caught.value.problems == ("runtime coreml: Core ML needs macOS, and this is Linux: use --runtime evaluator",)


def test_a_model_that_is_put_together_otherwise_is_skipped(
    tiny_llama: Saved, tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_layers(*_: Any) -> torch.Tensor:
        raise UnknownStructure("transformers' Other does not call its attention by name")

    monkeypatch.setattr(Reference, "run", run_layers)
    report = run_stages(*tiny_llama, tiny_package, require=["torch"])
    reason = "not compared: transformers' Other does not call its attention by name"
    rotary, layers, package, halves, *_ = report.stages
    assert (rotary.passed, package.passed) == (True, True)
    assert (layers.skipped, layers.passed) == (reason, False), "required, and skipped"
    assert (halves.skipped, halves.passed) == (reason, None)
