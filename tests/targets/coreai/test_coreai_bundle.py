"""A bundle in Core AI's format: built, proven by Apple's runtime, called."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from coreai_recipes.aimodel.folder import PROGRAM, places_in
from coreai_recipes.bundle import Bundle
from coreai_recipes.bundle.ruling import open_for_rules
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.evaluate.model_file import find_model_file
from coreai_recipes.lint.findings import lint
from coreai_recipes.lint.rule import rules
from coreai_recipes.planning.outline import outline
from coreai_recipes.recipe import load_recipe
from coreai_recipes.running import coreai
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.program import choose_runtime, open_program
from coreai_recipes.scoring.scoring import evaluate
from coreai_recipes.storage.weight_files import WEIGHT_FILES
from coreai_recipes.verification.report import StageResult
from coreai_recipes.verification.run import run_stages

Run = Callable[..., tuple[int, str, str]]
ASSET = ("main.mlirb", "main.hash", "metadata.json")
CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"


def test_the_asset_is_proven_by_apples_runtime(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert report["passed"]
    # who judged is told of each stage, for what that does not cover
    assert all(stage["detail"].get("runtime") == "coreai" for stage in report["stages"] if stage["passed"])
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


def test_what_reads_core_mls_programs_says_so(bundle: Path, run: Run) -> None:
    asset = bundle / "model.aimodel"
    with pytest.raises(UserError) as raised:
        find_model_file(asset)
    assert str(raised.value) == (
        f"{asset}: is in Core AI's format, whose programs Apple's runtime alone runs: `recipe verify` takes the bundle "
        "that it is in"
    )
    refused = (
        "is in Core AI's format, whose runtime shows no value inside a layer: audit Core ML's package of the same "
        "recipe, which computes the same (--set export.format=coreml)"
    )
    assert run("audit", bundle) == (2, "", f"{bundle}: {refused}\n")
    unmeasured = (
        "is in Core AI's format, and Core ML's packages alone are measured: build the same recipe with --set "
        "export.format=coreml"
    )
    assert run("device-report", bundle) == (2, "", f"{bundle}: {unmeasured}\n")
    assert run("audit", "tiny-llama", "--set", "export.format=coreai") == (2, "", f"tiny-llama: {refused}\n")


def test_lint_looks_at_the_saved_program_of_a_bundle_by_the_rules_of_its_format(bundle: Path, run: Run) -> None:
    status, out, _ = run("lint", bundle, "--json")
    found = json.loads(out)
    assert status == 0
    assert {finding["id"] for finding in found["findings"]} == {
        *("eos-template", "mac-32768", "div-sub", "act-lut", "embed-in")
    }
    # the norms' quotients, which no outline has, and every layer's activation
    assert {each["place"] for each in found["findings"] if each["id"] == "div-sub"} >= {"layer_full_1.0/%31"}
    assert sum(each["id"] == "act-lut" for each in found["findings"]) == 2 * 4
    assert found["not_run"] == [rule.id for rule in rules().values() if "coreai" not in rule.formats]
    assert {"state-count", "pq-crash"} < set(found["not_run"])
    opened = open_for_rules(bundle)
    assert opened.files == {f"model.aimodel/{name}": (bundle / "model.aimodel" / name).stat().st_size for name in ASSET}
    opened.files["model.aimodel/main.mlirb"] = 1_500_000_000  # whose limit is of Core ML's weight files
    assert lint(opened, only=["pkg-size"]).findings == ()


def test_a_report_says_what_calls_cost_and_who_has_judged(bundle: Path, run: Run, tmp_path: Path) -> None:
    cost = Bundle.open(bundle).described.functions["decode"].cost
    assert cost is not None
    assert cost.keys() == {"flops", "weight_bytes", "state_bytes"}
    status, out, _ = run("report", bundle, "-o", tmp_path / "page.html")
    assert (status, out.split()[0]) == (0, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "against transformers, by Apple&#39;s runtime: rotary, torch, package, package_float16, tokenizer" in page
    assert "not run, being of Core ML&#39;s programs: softplus, gather-i32" in page
    assert "specialisation for a device" in page


def test_a_text_is_evaluated_by_apples_runtime(bundle: Path) -> None:
    text = "The moon turns around the earth, and a day has twenty-four hours."
    found = evaluate(Bundle.open(bundle), [("moon", text)], str(CHECKPOINT))
    loss = found.whole.loss
    assert found.by == "Apple's runtime on the asset's float32 twin, 1 token a call of decode"
    assert loss.kl is not None
    assert 0 < loss.kl < 1e-5  # weights rounded to float16, and nothing else
    assert loss.perplexity == pytest.approx(loss.their_perplexity, rel=1e-2)


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


def test_a_call_of_what_is_not_there_is_refused(bundle: Path) -> None:
    """A token of -1 and 17 tokens of 16 gave logits, one beyond the vocabulary the runtime's own error."""
    program = open_program(bundle, Bundle.open(bundle).described)

    def call(token: int, count: int) -> None:
        given = {"position": 0, "count": count}
        inputs = {name: torch.tensor([value], dtype=torch.int32) for name, value in given.items()}
        program.call("prefill", {"input_ids": torch.full((1, 16), token, dtype=torch.int32), **inputs})

    for token in (-1, 512):
        with pytest.raises(BundleError) as raised:
            call(token, 16)
        assert str(raised.value) == f"function prefill was called with the token {token}; the vocabulary has 0 to 511"
    for count in (0, 17):
        with pytest.raises(BundleError, match=f"function prefill was called with {count} tokens; a call takes 1 to 16"):
            call(511, count)
    call(511, 16)


def test_the_file_that_holds_the_weights_is_the_formats(bundle: Path, run: Run, tmp_path: Path) -> None:
    planned = run("plan", "tiny-llama", "--set", "export.format=coreai")[1]
    text = tmp_path / "moon.txt"
    text.write_text("The moon turns around the earth, and a day has twenty-four hours.")
    for printed in (planned, run("evaluate", bundle, text)[1]):
        assert "main.mlirb: 400,224 weights" in printed
        assert "weight.bin" not in printed
    assert WEIGHT_FILES["coreai"] == PROGRAM
    files = outline(load_recipe("tiny-llama", ["export.format=coreai"])).files
    assert "main.mlirb" in files
    assert "weight.bin" in outline(load_recipe("tiny-llama")).files


def test_one_bit_of_a_float16_weight_is_seen(bundle: Path, tmp_path: Path) -> None:
    """It moved no figure of the stage, and only compressed weights were held to the checkpoint."""
    asset = shutil.copytree(bundle / "model.aimodel", tmp_path / "model.aimodel")
    program = bytearray((asset / PROGRAM).read_bytes())
    for name in ("layers_2_mlp_up_weight", "norm_weight"):
        start, size = places_in(asset)[name]
        program[start + size - 2] ^= 1
    (asset / PROGRAM).write_bytes(program)
    (asset / "main.hash").write_bytes(sha256(program).digest())
    recipe, source = load_recipe("tiny-llama", ["export.format=coreai"]), open_checkpoint(CHECKPOINT)

    def stage(package: Path) -> StageResult:
        (found,) = run_stages(recipe, source, package, stages=["package"], runtime="coreai", tokens=range(20)).stages
        return found

    found = stage(asset)
    assert found.passed is False
    assert found.detail["strangers"] == ["layers.2.mlp.up.weight", "norm.weight"]
    assert found.detail["first_below"]["tensor"] == "layers.2.mlp.up, which is not the checkpoint's"
    assert stage(bundle / "model.aimodel").passed
