"""The session over Core ML's own calls, with a stand-in for coremltools' MLModel that evaluates the package.

It is Core ML as coremltools shows it: a model for each function, arrays of numpy in and out, one state object for all.
"""

import platform
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coreai_recipes.evaluate import Program
from coreai_recipes.hosts.logits import best
from coreai_recipes.manifest.reading import read_manifest, typed
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.running.program import open_program
from coreai_recipes.running.session import Session

TOKENS = [(37 * index + 5) % 512 for index in range(60)]


class StateOf:
    """Core ML's state: it belongs to one package, and nothing of it can be seen."""

    def __init__(self, path: str, tensors: Any) -> None:
        self.path, self.tensors = path, tensors


class EvaluatedModel:
    programs: dict[str, Program] = {}  # noqa: RUF012

    def __init__(self, path: str, function_name: str, compute_units: str) -> None:
        self.path, self.name = path, function_name
        self.program = self.programs.setdefault(path, Program(path))

    def make_state(self) -> StateOf:
        return StateOf(self.path, self.program.make_state())

    def predict(self, data: dict[str, Any], state: StateOf) -> dict[str, Any]:
        assert state.path == self.path
        assert all(isinstance(value, np.ndarray) for value in data.values())
        outputs = self.program.function(self.name)(data, state.tensors)
        return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture
def bundles(tiny_bundle: Path, gemma4_tiny_bundle: Path) -> tuple[Path, Path]:
    """Built before `coreml` hides coremltools."""
    return tiny_bundle, gemma4_tiny_bundle


@pytest.fixture
def coreml(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    parent, models = types.ModuleType("coremltools"), types.ModuleType("coremltools.models")
    parent.ComputeUnit = {"CPU_AND_NE": "units"}  # type: ignore[attr-defined]
    models.MLModel = EvaluatedModel  # type: ignore[attr-defined]
    monkeypatch.setattr(EvaluatedModel, "programs", {})
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("26.0", ("", "", ""), "arm64"))
    monkeypatch.setattr("coreai_recipes.running.coreml.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "coremltools", parent)
    monkeypatch.setitem(sys.modules, "coremltools.models", models)
    return bundles


def session_on(bundle: Path, runtime: str) -> Session:
    manifest = typed(Manifest, read_manifest(bundle), "bundle")
    return Session(open_program(bundle, manifest, runtime), manifest)


@pytest.mark.parametrize("which", [0, 1], ids=["tiny-llama", "gemma4-tiny"])
def test_a_conversation_is_the_evaluators(coreml: tuple[Path, Path], which: int) -> None:
    """A prompt, its answer, another end of it within a ring's reach, and a text of its own, which takes new states."""
    core, own = (session_on(coreml[which], runtime) for runtime in ("coreml", "evaluator"))
    for tokens in (TOKENS[:40], TOKENS[:41], [*TOKENS[:39], 7], TOKENS[45:]):
        assert torch.equal(core.feed(tokens), own.feed(tokens))


def test_rounds_with_a_draft_are_the_evaluators(coreml: tuple[Path, Path]) -> None:
    core, own = (session_on(coreml[1], runtime) for runtime in ("coreml", "evaluator"))
    assert list(core.speculate(TOKENS[:20], 12, best)) == list(own.speculate(TOKENS[:20], 12, best))
