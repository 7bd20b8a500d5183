"""Nothing in a bundle is believed: what cannot be is refused in a sentence, and nothing waits, reads outside of it, or
takes memory for what a file only says of itself."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from coreai_recipes.bundle import Bundle, build
from coreai_recipes.errors import UserError
from coreai_recipes.protobuf import Model_pb2

CHECKPOINT = Path(__file__).parents[1] / "checkpoints/tiny-llama"
NAME = "tiny-llama"
MODEL = "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(NAME, CHECKPOINT, tmp_path_factory.mktemp("dist"), verified=False).path


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / NAME))


def change(bundle: Path, act: Callable[[dict[str, Any]], object], name: str = "manifest.json") -> None:
    document = json.loads((bundle / name).read_text())
    act(document)
    (bundle / name).write_text(json.dumps(document))


def seal_again(bundle: Path) -> None:
    """The manifest's digests as somebody who wants to be believed would write them."""

    def act(manifest: dict[str, Any]) -> None:
        for name, sealed in manifest["files"].items():
            content = (bundle / name).read_bytes()
            sealed.update(bytes=len(content), sha256=sha256(content).hexdigest())
        manifest["recipe_sha256"] = manifest["files"]["recipe.yaml"]["sha256"]

    change(bundle, act)


def opened(bundle: Path) -> tuple[str, ...]:
    """What opening the bundle says, or asking it for its recipe."""
    with pytest.raises(UserError) as told:
        _ = Bundle.open(bundle).recipe
    return told.value.problems


def package_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(manifest["packages"][0])


CONTRADICTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a longer context": (lambda m: m.update(context=100000), "context is 100000 and must be 256"),
    "another vocabulary": (lambda m: m.update(vocab_size=500), "vocab_size is 500 and must be 512"),
    "another name": (lambda m: m.update(name="llama"), "name is 'llama' and must be 'tiny-llama'"),
    "more layers": (
        lambda m: m["packages"][0].update(layers=[0, 5]),
        "packages: layers is [0, 5] of role all and must be [0, 4] of role all",
    ),
    "a longer prefill": (
        lambda m: m["packages"][0]["functions"]["prefill"].update(query=64),
        "packages: functions.prefill: query is 64 and must be 16",
    ),
    "no decode": (
        lambda m: m["packages"][0]["functions"].pop("decode"),
        "packages: functions are prefill and must be decode, prefill",
    ),
    "other logits": (
        lambda m: m["packages"][0]["functions"]["decode"]["outputs"]["logits"].update(shape=[1, 1, 511]),
        "packages: functions.decode: output logits is float16 [1, 1, 511] and must be float16 [1, 1, 512]",
    ),
    "a window": (
        lambda m: m["states"]["kv_full"]["kinds"]["full"].update(window=16),
        "states.kv_full has 4 layers of full from 0 on with window 16 and must have 4 layers of full from 0 on with "
        "window None",
    ),
    "too few rows": (
        lambda m: [
            m["states"]["kv_full"].update(shape=[8, 2, 128, 32]),
            m["states"]["kv_full"]["kinds"]["full"].update(rows=128),
        ],
        "states.kv_full has 128 rows and must have 271 or more",
    ),
    "a table": (
        lambda m: m["packages"].append(
            {"file": "recipe.yaml", "role": "table", "dtype": "float16", "shape": [2, 2], "row_bytes": 4, "input": "x"}
        ),
        "packages has the tables recipe.yaml [2, 2] for x and must have none",
    ),
    "a table of integers": (
        lambda m: m["packages"].append(
            {
                "file": "recipe.yaml",
                "role": "table",
                "dtype": "int8",
                "shape": [3, 2],
                "row_bytes": 2,
                "scales": {"dtype": "float16", "block": 2, "offset": 6},
                "input": "x",
            }
        ),
        "packages has the tables recipe.yaml [3, 2] of int8 in blocks of 2 for x and must have none",
    ),
    "a second program": (
        lambda m: m["packages"].append(package_of(m)),
        "packages: functions.decode: layers are [0, 4], [0, 4] and must follow one another from 0 to 4",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_manifest_that_contradicts_the_recipe_is_refused(bundle: Bundle, case: str) -> None:
    act, problem = CONTRADICTIONS[case]
    change(bundle, act)
    assert f"{bundle}: manifest.json: {problem}, by its recipe.yaml" in opened(bundle)


def test_a_context_that_the_states_do_not_hold_is_refused(bundle: Path) -> None:
    recipe = bundle / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("context: 256", "context: 100000"))
    change(bundle, lambda manifest: manifest.update(context=100000))
    seal_again(bundle)
    assert opened(bundle) == (
        f"{bundle}: manifest.json: states.kv_full has 288 rows and must have 100015 or more, by its recipe.yaml",
    )


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a package outside": (
        lambda m: m["packages"][0].update(file="../outside"),
        "packages.0.all.file: is not a path inside the bundle ('../outside')",
    ),
    "an absolute path": (
        lambda m: m["packages"][0].update(file="/etc"),
        "packages.0.all.file: is not a path inside the bundle ('/etc')",
    ),
    "a package that is not sealed": (
        lambda m: m["packages"][0].update(file="other.mlpackage"),
        "packages.0.file: 'other.mlpackage' is not among `files`",
    ),
    "a word for a number": (
        lambda m: m.update(context="256"),
        "context: input should be a valid integer ('256')",
    ),
    "a flag for a number": (
        lambda m: m.update(context=True),
        "context: input should be a valid integer (True)",
    ),
    "no packages": (lambda m: m.pop("packages"), "packages: field required"),
    "a huge size": (
        lambda m: m["states"]["kv_full"]["kinds"]["full"].update(rows=1 << 40),
        "states.kv_full.kinds.full.rows: input should be less than 2147483648 (1099511627776)",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_manifest_with_what_cannot_be_is_refused_with_its_field(bundle: Path, case: str) -> None:
    act, problem = FAULTS[case]
    change(bundle, act)
    assert opened(bundle) == (f"{bundle}: manifest.json: {problem}",)


def test_keys_of_a_later_build_of_the_format_are_ignored(bundle: Path) -> None:
    change(bundle, lambda manifest: manifest.update(engine={"rules": []}))
    assert Bundle.open(bundle).described.context == 256


def test_a_bundle_that_was_built_before_costs_were_written_down_is_read(bundle: Path) -> None:
    def act(manifest: dict[str, Any]) -> None:
        del manifest["checkpoint"]["bytes"], manifest["checkpoint"]["config_sha256"]
        for function in manifest["packages"][0]["functions"].values():
            del function["cost"]

    change(bundle, act)
    Bundle.open(bundle).check_package()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"x":' * 50_000, '{"format": NaN}', '{"name": "\\ud800"}'])
@pytest.mark.parametrize("name", ["manifest.json", "report.json"])
def test_json_that_no_reader_should_take_is_a_sentence(bundle: Path, name: str, content: str) -> None:
    (bundle / name).write_text(content)
    (problem,) = opened(bundle)
    assert problem.startswith(f"{bundle}: its manifest.json or report.json is not JSON ({name}: ")


def test_a_report_that_is_none_is_refused(bundle: Path) -> None:
    (bundle / "report.json").write_text('{"passed": 1, "stages": {}}')
    assert opened(bundle) == (
        f"{bundle}: report.json: passed: input should be a valid boolean (1)",
        f"{bundle}: report.json: stages: input should be a valid array",
    )


def test_a_recipe_in_a_bundle_extends_nothing(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text("secret: 1")
    recipe = bundle / "recipe.yaml"
    recipe.write_text(f"extends: {tmp_path}/outside.yaml\n{recipe.read_text()}")
    seal_again(bundle)
    assert opened(bundle) == (f"{recipe}:1:1: extends: a bundle's recipe is complete and extends no other",)


def test_another_recipe_than_the_sealed_one_is_named(bundle: Path) -> None:
    (bundle / "recipe.yaml").write_text((bundle / "recipe.yaml").read_text() + "# mine\n")
    assert opened(bundle) == (f"{bundle}: modified since it was built: recipe.yaml",)


# --- what is no file --------------------------------------------------------------------------------------------------


def make_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a pipe, not a file"


def make_device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "is a link to a place outside the bundle"


def make_outside(path: Path) -> str:
    path.symlink_to("/etc/passwd")
    return "is a link to a place outside the bundle"


def make_huge(path: Path) -> str:
    with path.open("wb") as file:
        file.truncate(1 << 36)
    return "is larger than"


def make_folder(path: Path) -> str:
    path.mkdir()
    return "is a folder, not a file"


OTHERS = [make_pipe, make_device, make_outside, make_huge, make_folder]
FILES = ["manifest.json", "report.json", "recipe.yaml", "tokenizer.json", "tokens.json", MODEL, WEIGHTS]


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_neither_waited_for_nor_read(
    bundle: Path, name: str, make: Callable[[Path], str], run: Run
) -> None:
    (bundle / name).unlink()
    reason = make(bundle / name)
    status, out, err = run("run", bundle, "Hello", "--max-tokens", 1, "--runtime", "evaluator")
    if name.startswith("model.mlpackage") and make is make_huge:
        reason = "modified since it was built"
    assert (status, out) == (2, ""), err
    assert reason in err


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["/etc/passwd", "../../../../../etc/passwd", "com.apple.CoreML/../../../x", "", 3])
def test_a_package_that_leads_outside_is_refused(bundle: Path, way: object, run: Run) -> None:
    def act(document: dict[str, Any]) -> None:
        document["itemInfoEntries"][document["rootModelIdentifier"]]["path"] = way

    change(bundle, act, "model.mlpackage/Manifest.json")
    seal_again(bundle)
    for command in (("run", bundle, "Hello", "--runtime", "evaluator"), ("verify", bundle, "--checkpoint", CHECKPOINT)):
        status, _, err = run(*command)
        assert status == 2
        assert err.startswith(f"{bundle}/model.mlpackage: its Manifest.json names {way!r}, which is not ")


def change_program(bundle: Path, act: Callable[[Any], object]) -> None:
    model = Model_pb2.Model.FromString((bundle / MODEL).read_bytes())
    act(model)
    (bundle / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    seal_again(bundle)


def blocks(model: Any) -> list[Any]:
    return [block for f in model.mlProgram.functions.values() for block in f.block_specializations.values()]


def widen_inputs(model: Any) -> None:
    for function in model.mlProgram.functions.values():
        function.inputs[0].type.tensorType.dimensions[1].constant.size = 99


def drop_a_function(model: Any) -> None:
    del model.mlProgram.functions["prefill"]


def lengthen_states(model: Any) -> None:
    for function in model.mlProgram.functions.values():
        for port in function.inputs:
            if port.type.WhichOneof("type") == "stateType":
                port.type.stateType.wrappedType.tensorType.dimensions[2].constant.size = 1 << 20


def describe_otherwise(model: Any) -> None:
    del model.description.functions[:]


PROGRAMS: dict[str, tuple[Callable[[Any], object], str]] = {
    "wider inputs": (widen_inputs, "input input_ids is int32 [1, 99] and must be int32 [1, 1]"),
    "a function less": (drop_a_function, "has no function prefill, which the manifest describes"),
    "longer states": (
        lengthen_states,
        "state kv_full is float16 [8, 2, 1048576, 32] and must be float16 [8, 2, 288, 32]",
    ),
    "another description": (describe_otherwise, "its description has the functions none and must have decode, prefill"),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_a_package_that_is_not_what_the_manifest_says_is_refused(bundle: Path, case: str, run: Run) -> None:
    act, problem = PROGRAMS[case]
    change_program(bundle, act)
    for command in (("run", bundle, "Hello", "--runtime", "evaluator"), ("verify", bundle, "--checkpoint", CHECKPOINT)):
        status, _, err = run(*command)
        assert status == 2
        assert problem in err


def read_nothing(model: Any) -> None:
    for block in blocks(model):
        next(op for op in block.operations if op.type == "add").inputs["x"].arguments[0].name = "nowhere"


def forget_the_opset(model: Any) -> None:
    for function in model.mlProgram.functions.values():
        function.opset = "CoreML99"


def give_twice(model: Any) -> None:
    for block in blocks(model):
        block.operations.append(block.operations[-1])


def default_to_nothing(model: Any) -> None:
    model.description.defaultFunctionName = "x"


def weights_elsewhere(model: Any) -> None:
    for block in blocks(model):
        for op in block.operations:
            if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
                op.attributes["val"].blobFileValue.fileName = "@model_path/../../../../../etc/passwd"


def offset_beyond(model: Any) -> None:
    for block in blocks(model):
        for op in block.operations:
            if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
                op.attributes["val"].blobFileValue.offset = 2**63


def huge_constants(model: Any) -> None:
    for block in blocks(model):
        for op in block.operations:
            for dimension in op.outputs[0].type.tensorType.dimensions if op.type == "add" else ():
                dimension.constant.size = 2**40


DAMAGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "an operand that nothing gives": (read_nothing, "reads 'nowhere', which no operation before it gives"),
    "an opset that is not there": (forget_the_opset, "has nothing for its opset 'CoreML99'"),
    "a value twice": (give_twice, "gives a value that already exists"),
    "a default that is not there": (default_to_nothing, "its default function 'x' is not there"),
    "weights elsewhere": (weights_elsewhere, "lie outside the package"),
    "an offset beyond the file": (offset_beyond, "but the program needs a weight at byte 9223372036854775808"),
    "a value that no memory holds": (huge_constants, "which no memory holds: the program is damaged"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_program_is_a_sentence(bundle: Path, case: str, run: Run) -> None:
    act, problem = DAMAGES[case]
    change_program(bundle, act)
    status, _, err = run("run", bundle, "Hello", "--max-tokens", 1, "--runtime", "evaluator")
    assert status == 2
    assert problem in err
