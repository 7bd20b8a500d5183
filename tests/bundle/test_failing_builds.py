"""A build that fails or is interrupted leaves the previous bundle, and nothing beside it."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from built_bundles import CHECKPOINT, NAME, contents

from coreai_recipes.bundle import Bundle, VerificationError, build
from coreai_recipes.errors import BundleError, CheckpointError

# --- builds that fail -------------------------------------------------------------------------------------------------


def assert_untouched(bundle: Bundle, first: Bundle) -> None:
    assert contents(bundle.path) == contents(first.path)
    assert [path.name for path in bundle.path.parent.iterdir()] == [NAME]


def test_a_package_that_does_not_pass_is_not_installed(bundle: Bundle, first: Bundle, fragments: Path) -> None:
    """Another theta than the checkpoint's config: text stays fluent, and only verification can tell."""
    overrides = ["model.kinds.full.rotary.theta=20000.0", "export.context=64"]
    with pytest.raises(VerificationError) as caught:
        build(NAME, CHECKPOINT, bundle.path.parent, overrides=overrides)
    assert not caught.value.report.passed
    assert_untouched(bundle, first)


def test_a_package_that_does_not_pass_leaves_no_bundle(
    fragments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coreai_recipes.verification.report import Report, StageResult

    failed = Report((StageResult("package", False, 12.0, 3.0, 90.0),))
    monkeypatch.setattr("coreai_recipes.verification.run.run_on", lambda *_, **__: failed)
    with pytest.raises(VerificationError) as caught:
        build(NAME, CHECKPOINT, tmp_path / "out")
    assert caught.value.report is failed
    assert list((tmp_path / "out").iterdir()) == []


def test_a_package_that_passes_carries_its_report(
    fragments: Path, first: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coreai_recipes.verification.report import Report, StageResult

    passed = Report((StageResult("package", True, 120.0, 99.0, 90.0),))
    monkeypatch.setattr("coreai_recipes.verification.run.run_on", lambda *_, **__: passed)
    built = build(NAME, CHECKPOINT, tmp_path)
    assert built.report == Bundle.open(built.path).report == passed.to_json()
    different = {name for name, data in contents(first.path).items() if contents(built.path)[name] != data}
    assert different == {"report.json"}


def interrupt(step: str, done: int, total: int) -> None:
    if step == "weights" and done > total // 2:
        raise KeyboardInterrupt


def test_an_interrupted_build_leaves_the_previous_bundle(bundle: Bundle, first: Bundle, fragments: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(NAME, CHECKPOINT, bundle.path.parent, verified=False, progress=interrupt)
    assert_untouched(bundle, first)


def test_an_interrupted_first_build_leaves_no_litter(fragments: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(NAME, CHECKPOINT, tmp_path / "out", verified=False, progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupt_between_conversions_leaves_the_previous_bundle(
    bundle: Bundle, first: Bundle, fragments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coreai_recipes.targets.coreml.mlpackage.write_model", stop)
    with pytest.raises(KeyboardInterrupt):
        build(NAME, CHECKPOINT, bundle.path.parent, verified=False)
    assert_untouched(bundle, first)


def test_no_space_is_said_before_anything_is_converted(
    bundle: Bundle, first: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coreai_recipes.bundle.building.shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    monkeypatch.setattr("coreai_recipes.targets.coreml.exporter.export_package", None)
    with pytest.raises(BundleError) as caught:
        build(NAME, CHECKPOINT, bundle.path.parent, verified=False)
    (problem,) = caught.value.problems
    needed = re.fullmatch(
        rf"{re.escape(str(bundle.path.parent))}: (\S+) MB are needed, but only 0.10 MB are free", problem
    )
    assert needed is not None, problem
    assert float(needed[1]) > 0.1  # "0.00 GB are needed, but only 0.00 GB are free" says nothing
    monkeypatch.undo()
    assert_untouched(bundle, first)


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "holds NaN"), (1e6, "holds 1000000, and float16 ends")])
def test_a_weight_that_float16_cannot_hold_leaves_the_previous_bundle(
    value: float, words: str, bundle: Bundle, first: Bundle, fragments: Path, tmp_path_factory: Any
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path_factory.mktemp("broken") / NAME
    shutil.copytree(CHECKPOINT, broken)
    tensors = {name: tensor.float() for name, tensor in load_file(broken / "model.safetensors").items()}
    tensors["model.layers.2.mlp.up_proj.weight"][3, 3] = value
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"model\.layers\.2\.mlp\.up_proj\.weight {words}"):
        build(NAME, broken, bundle.path.parent, verified=False)
    assert_untouched(bundle, first)


def test_a_checkpoint_of_another_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        build(NAME, CHECKPOINT, tmp_path / "out", overrides=["model.hidden_size=128"], verified=False)
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_a_checkpoint_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        build(NAME, None, tmp_path / "out", verified=False)
    assert caught.value.problems == ("tiny-llama: the recipe names no checkpoint: pass one with --checkpoint SRC",)
