"""A bundle in Core AI's format: built, proven by Apple's runtime, called."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from coreai_recipes.bundle import Bundle
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.lint.reading import is_saved, open_subject
from coreai_recipes.running import coreai
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.program import choose_runtime, open_program

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"


def test_the_asset_is_proven_by_apples_runtime(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert report["passed"]
    assert stages["package"]["detail"]["runtime"] == "coreai"
    assert stages["package"]["psnr_db"] > 130
    assert [figure["tensor"] for figure in stages["package"]["detail"]["figures"]][-2:] == ["layers.3.output", "logits"]
    assert stages["package_float16"]["passed"]


def test_the_manifest_is_that_of_any_bundle(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.check_files()
    assert [program.file for program in opened.described.programs] == ["model.aimodel"]
    assert opened.described.package_format == "coreai"
    assert opened.manifest["versions"].keys() == {"coreai-recipes", "coreai-core", "coreai-torch", "torch"}
    program = bundle / "model.aimodel/main.mlirb"
    assert (bundle / "model.aimodel/main.hash").read_bytes() == sha256(program.read_bytes()).digest()


@pytest.mark.parametrize("place", ["", "model.aimodel"])
def test_what_reads_core_mls_programs_says_so(bundle: Path, place: str) -> None:
    assert is_saved(bundle / place)
    with pytest.raises(UserError) as raised:
        open_subject(bundle / place)
    assert str(raised.value) == (
        f"{bundle / 'model.aimodel'}: is in Core AI's format, and lint, report, audit and evaluate read Core ML's "
        "programs; `recipe verify` runs it by Apple's runtime"
    )


def test_another_process_builds_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    run = "import sys; from coreai_recipes import bundle; {}"
    build = (
        "bundle.build('tiny-llama', *sys.argv[1:], overrides=['export.format=coreai'], verified=False, cached=False)"
    )
    subprocess.run([sys.executable, "-c", run.format(build), str(CHECKPOINT), str(tmp_path)], check=True)
    for name in ("main.mlirb", "main.hash", "metadata.json"):
        built = tmp_path / "tiny-llama/model.aimodel" / name
        assert built.read_bytes() == (bundle / "model.aimodel" / name).read_bytes(), name


def test_a_call_beyond_the_context_is_refused(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    program = open_program(bundle, opened.described)
    inputs = {"input_ids": torch.tensor([[5]], dtype=torch.int32), "position": torch.tensor([256], dtype=torch.int32)}
    with pytest.raises(BundleError, match="was called with 1 tokens at position 256; the states hold positions 0 to 2"):
        program.call("decode", inputs)


def test_states_that_the_host_has_written_are_read(bundle: Path) -> None:
    program = CoreAIProgram(bundle / "model.aimodel")
    inputs = {"input_ids": torch.tensor([[5]], dtype=torch.int32), "position": torch.tensor([3], dtype=torch.int32)}
    before = program.function("decode")(inputs, program.make_state())["logits"]
    other = program.make_state()
    other["kv_full"][:, :, :3] = 1
    after = program.function("decode")(inputs, other)["logits"]
    assert not torch.equal(before, after)
    assert other["kv_full"][0, 0, 3].abs().sum() > 0


def test_a_file_that_is_not_its_hashs_is_not_run(bundle: Path, tmp_path: Path) -> None:
    asset = shutil.copytree(bundle / "model.aimodel", tmp_path / "model.aimodel")
    with (asset / "main.mlirb").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(BundleError, match=r"main\.mlirb is not the program whose digest main\.hash holds"):
        CoreAIProgram(asset)


def test_a_broken_file_ends_the_runtimes_process_and_not_ours(bundle: Path, tmp_path: Path) -> None:
    asset = shutil.copytree(bundle / "model.aimodel", tmp_path / "model.aimodel")
    short = (asset / "main.mlirb").read_bytes()[:100_000]
    (asset / "main.mlirb").write_bytes(short)
    (asset / "main.hash").write_bytes(sha256(short).digest())
    with pytest.raises(BundleError, match=r"model\.aimodel: "):
        CoreAIProgram(asset)


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreai, "find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        choose_runtime("auto", "coreai")
    assert str(raised.value) == (
        "export.format coreai needs coreai-core, which is not installed: pip install 'coreai-recipes[coreai]'"
    )


def test_no_other_runtime_runs_an_aimodel() -> None:
    with pytest.raises(UserError, match=r"runtime evaluator: Core AI's runtime runs an \.aimodel, and nothing"):
        choose_runtime("evaluator", "coreai")
    with pytest.raises(UserError, match=r"runtime coreai: it runs an \.aimodel"):
        choose_runtime("coreai", "coreml")
