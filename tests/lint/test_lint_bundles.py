"""Rules about what lies beside a program: weight files, tokenizers, functions, an audit; and rules in a build."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coremltools.proto import Model_pb2

from coreai_recipes.lint.findings import Finding, lint
from coreai_recipes.lint.reading import open_subject
from coreai_recipes.manifest.audit import AUDIT, Audit, audit_text
from coreai_recipes.planning.outline import outline
from coreai_recipes.recipe import load_recipe
from tests.evaluate.mil_programs import write_package, write_two_functions
from tests.lint.rule_cases import CASES
from tests.lint.rule_programs import IMAGE, conv, one, palette

Run = Callable[..., tuple[int, str, str]]


def broken(path: Path, rule: str) -> tuple[Finding, ...]:
    return lint(open_subject(path), only=[rule]).findings


def edit(package: Path, change: Callable[[Any], None]) -> Path:
    file = next(package.glob("Data/**/*.mlmodel"))
    model = Model_pb2.Model.FromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())
    return package


def test_a_shape_that_a_call_chooses_is_an_error_and_once(tmp_path: Path) -> None:
    def let_choose(model: Any) -> None:
        port = model.description.functions[0].input[0] if model.description.functions else model.description.input[0]
        ranges = port.type.multiArrayType.shapeRange.sizeRanges
        for size in (1, 32):
            ranges.add(lowerBound=size, upperBound=64)

    def leave_open(model: Any) -> None:
        function = model.mlProgram.functions["main"]
        (block,) = function.block_specializations.values()
        for kind in (function.inputs[0].type, block.operations[-1].outputs[0].type):
            kind.tensorType.dimensions[1].unknown.variadic = False

    package = write_package(tmp_path / "one.mlpackage", CASES["act-lut"][1].build, {"x": ("float16", (1, 32))})
    assert broken(package, "dyn-shape") == ()
    other = shutil.copytree(package, tmp_path / "other.mlpackage")
    for each, change in ((package, let_choose), (other, leave_open)):
        (found,) = broken(edit(each, change), "dyn-shape")
        assert (found.level, found.place) == ("error", "x")


def test_a_weight_file_is_held_against_what_phones_load(tmp_path: Path) -> None:
    package = write_package(tmp_path / "one.mlpackage", lambda x: conv(x, 64), IMAGE)
    assert broken(package, "pkg-size") == ()
    weights = next(package.glob("Data/**/weight.bin"))
    levels = []
    for size in (1_000_000_000, 1_500_000_000):
        os.truncate(weights, size)  # no byte of it is read
        (found,) = lint(open_subject(package), only=["pkg-size"]).findings
        levels.append((found.level, found.message.split(":")[0]))
    place = weights.relative_to(package).as_posix()
    assert levels == [("warning", f"{place} is 1.00 GB"), ("warning", f"{place} is 1.50 GB")]
    assert "(on A14, A15, A16, A17, A18, A19)" in found.message


def test_functions_that_do_not_share_their_palettes_are_noted(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    def looked_up(bits: int) -> Callable[..., Any]:
        return lambda x: mb.matmul(x=x, y=palette(bits))

    x = {"x": ("float16", (1, 64))}
    paths = [write_package(tmp_path / f"{bits}.mlpackage", looked_up(bits), x) for bits in (4, 6)]
    apart = write_two_functions(tmp_path / "apart.mlpackage", *paths)
    together = write_two_functions(tmp_path / "together.mlpackage", paths[0], paths[0])
    assert [finding.level for finding in broken(apart, "multi-fn")] == ["note"]
    assert broken(together, "multi-fn") == ()


def test_many_functions_are_many_programs_to_a_phone(tmp_path: Path) -> None:
    def multiply(count: int) -> Callable[[Any], None]:
        def change(model: Any) -> None:
            functions = model.mlProgram.functions
            for index in range(count - 1):
                functions[f"prefill_{index}"].CopyFrom(functions["main"])

        return change

    package = write_package(tmp_path / "one.mlpackage", one_relu, {"x": ("float16", (1, 32))})
    four, five = (edit(shutil.copytree(package, tmp_path / f"{count}.mlpackage"), multiply(count)) for count in (4, 5))
    assert broken(four, "fn-count") == ()
    (found,) = broken(five, "fn-count")
    assert found.message.startswith("5 functions, each a separate program when loaded")


def one_relu(x: Any) -> Any:
    from coremltools.converters.mil.mil import Builder as mb

    return one(mb.relu)(x)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def test_a_bundle_whose_tokenizer_fits_is_let_be(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    tokens = json.loads((bundle / "tokenizer.json").read_text())["added_tokens"]
    (end,) = [token["content"] for token in tokens if token["id"] in manifest["eos_token_ids"]]
    write_tokenizer(bundle, tokenizer_class="LlamaTokenizerFast", chat_template=f"{{{{ messages }}}}{end}")
    assert broken(bundle, "eos-template") == ()


def test_what_a_host_would_miss_is_said_each_in_a_line(bundle: Path) -> None:
    write_tokenizer(bundle, tokenizer_class="OwnTokenizer", chat_template="{{ messages }}")
    document = json.loads((bundle / "tokenizer.json").read_text())
    document["added_tokens"].append({"id": 600, "content": "<more>"})
    (bundle / "tokenizer.json").write_text(json.dumps(document))
    messages = [finding.message for finding in broken(bundle, "eos-template")]
    assert [message.split(" (")[0].split(",")[0] for message in messages] == [
        "the chat template never writes an end token",
        "tokenizer_class is OwnTokenizer",
        "the tokenizer has 601 tokens and the logits 512 columns",
    ]
    (bundle / "tokenizer_config.json").write_text("{}")
    assert broken(bundle, "eos-template")[0].message.startswith("no chat template")


def write_tokenizer(bundle: Path, **fields: Any) -> None:
    path = bundle / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def audited(bundle: Path, largest: float) -> None:
    """An audit of all values of decode, as if none went beyond."""
    (program,) = open_subject(bundle).programs
    values = {
        result.name: {"operation": operation.type, "largest": largest, "least": 1.0}
        for function in program.functions
        for operation in function.operations
        for result in operation.results
    }
    audit = {"format": 1, "prompts": 1, "positions": 1, "functions": {f.name: values for f in program.functions}}
    (bundle / AUDIT).write_text(audit_text(Audit.model_validate_json(json.dumps(audit))))


@pytest.mark.parametrize(
    ("largest", "levels"),
    [(None, {"unknown"}), (16000.0, set()), (20000.0, {"warning"}), (40000.0, {"error"})],
)
def test_ranges_are_the_audits(bundle: Path, largest: float | None, levels: set[str]) -> None:
    from coreai_recipes.lint.devices import find_device

    if largest is not None:
        audited(bundle, largest)
    found = lint(open_subject(bundle), find_device("M1"), only=["mac-32768"]).findings
    assert {finding.level for finding in found} == levels
    if largest is None:
        assert all(finding.message.startswith("unknown: run audit") for finding in found)


def test_a_file_that_is_no_audit_is_one_sentence(bundle: Path, run: Run) -> None:
    (bundle / AUDIT).write_text("[]")
    status, out, error = run("lint", bundle)
    assert (status, out, len(error.splitlines())) == (2, "", 1)
    assert error.startswith(f"{bundle}: {AUDIT}")


def test_a_recipe_is_held_against_the_rules_that_sizes_decide(run: Run) -> None:
    status, out, _ = run("lint", "gemma4", "--json", "--device", "A19")
    found = {(finding["id"], finding["level"]) for finding in json.loads(out)["findings"]}
    assert ("pkg-size", "error") in found
    assert ("embed-in", "note") in found
    assert status == 1
    planned = json.loads(run("plan", "gemma4", "--set", "export.device=A19", "--json")[1])["findings"]
    assert {(finding["id"], finding["level"]) for finding in planned} == found


def test_a_recipe_in_outline_has_the_findings_of_its_package(tiny_bundle: Path) -> None:
    """By the rules that sizes decide; and a setting that mends one is seen in both."""
    sized = (
        "state-count",
        "state-uniform",
        "state-32",
        "state-cost",
        "embed-in",
        "gather-i32",
        "conv-8x8",
        "small-cpu",
    )
    recipe = load_recipe("tiny-llama")
    ours, theirs = (
        {(finding.id, finding.level, finding.function) for finding in lint(subject, only=sized).findings}
        for subject in (outline(recipe), open_subject(tiny_bundle))
    )
    assert ours == theirs
    row, square = (load_recipe("smollm2-135m", [f"export.mlp_layout={layout}"]) for layout in ("row", "8x8"))
    assert lint(outline(row), only=["conv-8x8"]).findings
    assert not lint(outline(square), only=["conv-8x8"]).findings


BUILD = ("build", "tiny-llama", "--checkpoint", Path(__file__).parents[1] / "checkpoints/tiny-llama", "--no-verify")
LONG = ("--set", "export.context=20000", "--set", "export.attention_layout=last", "--set", "export.device=M1")


def test_a_build_for_a_device_fails_on_its_errors_unless_the_recipe_allows_them(run: Run, tmp_path: Path) -> None:
    status, out, error = run(*BUILD, "--out", tmp_path, *LONG)
    assert status == 1
    assert "width-16k" in out
    assert error.endswith(
        "the package breaks rules of the device; no bundle was written (export.allow lets a rule pass)\n"
    )
    assert not (tmp_path / "tiny-llama").exists()
    allowed = ("--set", "export.allow.width-16k=0.3 ms a call on the CPU")
    status, out, error = run(*BUILD, "--out", tmp_path, *LONG, *allowed, "--json")
    assert status == 0, error
    found = [finding for finding in json.loads(out)["findings"] if finding["id"] == "width-16k"]
    assert {finding["level"] for finding in found} == {"warning"}
    assert found[0]["message"].endswith("(allowed: 0.3 ms a call on the CPU)")
    assert (
        json.loads(run("lint", tmp_path / "tiny-llama", "--device", "M1", "--json")[1])["findings"][0]["level"]
        != "error"
    )


def test_a_build_without_a_device_says_what_it_found_and_goes_on(run: Run, tmp_path: Path) -> None:
    status, out, _ = run(*BUILD, "--out", tmp_path, *LONG[:4])
    assert status == 0
    assert "(on M1, M2, M3, A14)" in out
    assert "rules: 0 errors" in out


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("export.device=M9", "export.device: `M9` is not one of `A14`, `iphone-12`, "),
        ("export.allow.width-16=1 ms", "export.allow.width-16: unknown key\n  did you mean `width-16k`?"),
        (
            "export.allow={width-16: 1 ms}",
            "export.allow.width-16: unknown key\n  did you mean `width-16k`?",
        ),
        (
            "export.allow.width-16k=it is fine",
            "export.allow.width-16k: `it is fine` gives no figure: say what was measured, or what it costs",
        ),
    ],
)
def test_a_recipe_names_chips_and_rules_that_there_are_and_a_figure(run: Run, setting: str, said: str) -> None:
    status, _, error = run("plan", "tiny-llama", "--set", setting)
    assert status == 2
    assert said in error


def test_a_package_is_looked_at_without_torch_and_without_coremltools(tiny_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from coreai_recipes.lint.findings import lint; "
        "from coreai_recipes.lint.reading import open_subject; lint(open_subject(Path(sys.argv[1]))); "
        "print(*sorted({'torch', 'coremltools', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
