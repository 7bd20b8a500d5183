"""A manifest of two packages opens and runs: halves of a decoder, and functions that lie apart."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from coreai_recipes.bundle.opened import digest_of
from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.model_file import find_model_file
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.export.fragments import Port
from coreai_recipes.export.reporting import Signature
from coreai_recipes.manifest.reading import MANIFEST, REPORT, read_manifest, typed
from coreai_recipes.manifest.schema import Manifest
from coreai_recipes.protobuf import MIL_pb2, Model_pb2
from coreai_recipes.running.program import open_program
from coreai_recipes.running.session import Session
from coreai_recipes.targets.coreml.mlpackage import describe_function

NAMES = ("first.mlpackage", "second.mlpackage")
TOKENS = [(37 * index + 5) % 512 for index in range(40)]
CUT = "layer_2_"  # of four layers
BOOL = MIL_pb2.DataType.BOOL
Run = Callable[..., tuple[int, str, str]]


def copy(bundle: Path, folder: Path, name: str, change: Callable[[Any], None]) -> None:
    shutil.copytree(bundle / "model.mlpackage", folder / name)
    file = find_model_file(folder / name)
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())


def keep_function(kept: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for name in [name for name in model.mlProgram.functions if name != kept]:
            del model.mlProgram.functions[name]
        model.description.defaultFunctionName = kept

    return change


def keep_half(half: int) -> Callable[[Any], None]:
    """Every function up to layer 2, or from there on; what crosses is an output of one and an input of the other."""

    def change(model: Any) -> None:
        for function in model.mlProgram.functions.values():
            block = function.block_specializations[function.opset]
            operations = list(block.operations)
            cut = next(i for i, each in enumerate(operations) if any(o.name.startswith(CUT) for o in each.outputs))
            first, in_both = operations[:cut], [each for each in operations[:cut] if is_repeated(each)]
            second = [*in_both, *operations[cut:]]
            made = {o.name: o.type for each in first if not is_repeated(each) for o in each.outputs}
            crossing = sorted({name for each in second for name in operands(each)} & made.keys())
            del block.operations[:]
            block.operations.extend(second if half else first)
            if half == 0:
                block.outputs[:] = crossing
            for name in crossing if half else ():
                function.inputs.add(name=name, type=made[name])

    return change


def is_repeated(operation: Any) -> bool:
    """Constants, and truth values, which no output can be."""
    kinds = {output.type.tensorType.dataType for output in operation.outputs}
    return operation.type.startswith("const") or BOOL in kinds


def operands(operation: Any) -> Iterator[str]:
    for argument in operation.inputs.values():
        yield from (each.name for each in argument.arguments if each.name)


def two_packages(bundle: Path, folder: Path, first: Callable[[Any], None], second: Callable[[Any], None]) -> Manifest:
    """The bundle's package as two in `folder`, and a manifest that says so."""
    content = read_manifest(bundle)
    for name, change in zip(NAMES, (first, second), strict=True):
        copy(bundle, folder, name, change)
        content["files"][f"{name}/Manifest.json"] = {"bytes": 1, "sha256": "0" * 64}
    tables = [entry for entry in content["packages"] if entry["role"] == "table"]
    programs = []
    for index, name in enumerate(NAMES):
        functions = {
            function: {
                "query": inputs["input_ids"][1][1],
                "inputs": {port: {"dtype": dtype, "shape": list(shape)} for port, (dtype, shape) in inputs.items()},
                "outputs": {port: {"dtype": dtype, "shape": list(shape)} for port, (dtype, shape) in outputs.items()},
            }
            for function, (inputs, outputs, _) in Package(folder / name, checked=False).signatures().items()
        }
        programs.append({"file": name, "role": "layers", "layers": [2 * index, 2 * index + 2], "functions": functions})
    return typed(Manifest, json.loads(json.dumps(content | {"packages": [*tables, *programs]})), "two")


FORMS = {
    "halves": (keep_half(0), keep_half(1)),
    "functions apart": (keep_function("prefill"), keep_function("decode")),
}


@pytest.mark.parametrize("form", FORMS)
def test_two_packages_say_what_the_one_says(tiny_bundle: Path, tmp_path: Path, form: str) -> None:
    whole = typed(Manifest, read_manifest(tiny_bundle), "one")
    manifest = two_packages(tiny_bundle, tmp_path, *FORMS[form])
    assert len(manifest.programs) == 2
    ports = {name: (each.query, each.inputs, each.outputs) for name, each in manifest.functions.items()}
    assert ports == {name: (each.query, each.inputs, each.outputs) for name, each in whole.functions.items()}
    one = Session(open_program(tiny_bundle, whole, "evaluator"), whole)
    two = Session(open_program(tmp_path, manifest, "evaluator"), manifest)
    # a prompt, an answer, another end of it, and a text of its own
    for tokens in (TOKENS[:19], TOKENS[:20], TOKENS[:21], [*TOKENS[:18], 7, 8, 9], TOKENS[20:]):
        assert torch.equal(two.feed(tokens), one.feed(tokens))


def test_what_a_chain_is_not_given_and_does_not_have_is_a_sentence(tiny_bundle: Path, tmp_path: Path) -> None:
    program = open_program(tmp_path, two_packages(tiny_bundle, tmp_path, *FORMS["halves"]), "evaluator")
    with pytest.raises(BundleError, match=r"^function decode needs the inputs input_ids, position, but got nothing$"):
        program.call("decode", {})
    with pytest.raises(BundleError, match=r"^there is no function score; available: decode, prefill$"):
        program.call("score", {})


def test_programs_that_say_two_things_of_what_is_handed_on_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    content = two_packages(tiny_bundle, tmp_path, *FORMS["halves"]).model_dump(mode="json")
    second = content["packages"][1]["functions"]["decode"]
    handed = next(port for port in second["inputs"] if port not in ("input_ids", "position"))
    second["inputs"][handed]["dtype"], second["query"] = "float32", 2
    with pytest.raises(BundleError) as caught:
        typed(Manifest, content, "two")
    queries, port = caught.value.problems
    assert queries == "two: packages: functions.decode: query is 1 and 2"
    assert port.startswith(f"two: packages: functions.decode: {handed} is float16 [")
    assert " and float32 [" in port


def test_core_ml_is_not_asked_to_share_a_state_between_packages(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = two_packages(tiny_bundle, tmp_path, *FORMS["functions apart"])
    monkeypatch.setattr("coreai_recipes.running.program.choose_runtime", lambda *_: "coreml")
    with pytest.raises(BundleError, match="shares the state kv_full with first"):
        open_program(tmp_path, manifest, "auto")


# --- a whole bundle of two packages -----------------------------------------------------------------------------------


def describe(package: Path) -> None:
    """Say to Core ML what the functions of a package are."""
    file, model = find_model_file(package), Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    del model.description.functions[:]
    for name, ports in Package(package, checked=False).signatures().items():
        named = ({port: Port(*kind) for port, kind in found.items()} for found in ports)
        describe_function(model, name, Signature(*named))
    file.write_bytes(model.SerializeToString())


def bundle_of_two(tiny_bundle: Path, folder: Path, form: str) -> Path:
    shutil.copytree(tiny_bundle, folder, ignore=shutil.ignore_patterns("model.mlpackage"))
    content = json.loads(two_packages(tiny_bundle, folder, *FORMS[form]).model_dump_json())
    for package in content["packages"]:
        describe(folder / package["file"])
        if form == "functions apart":
            package.update(role="all", layers=[0, 4])
    sealed = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MANIFEST, REPORT)]
    content["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_of(path)}
        for path in [*sealed, *(path for name in NAMES for path in (folder / name).rglob("Manifest.json"))]
    }
    (folder / MANIFEST).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_of_two_packages_answers_as_one_does(tiny_bundle: Path, tmp_path: Path, run: Run, form: str) -> None:
    """The commands refused what `running` opens: `must have one, for only a single one can be run here`."""
    two = bundle_of_two(tiny_bundle, tmp_path / "two", form)
    asked = ["In the beginning", "--raw", "--max-tokens", "4", "--runtime", "evaluator"]
    status, said, _ = run("run", two, *asked)
    assert (status, said) == run("run", tiny_bundle, *asked)[:2]
    assert status == 0
    assert run("lint", two)[0] == run("lint", tiny_bundle)[0]
    names = ", ".join(NAMES)
    for command in (["verify", two, "--stage", "package"], ["audit", two]):
        assert run(*command)[::2] == (
            2,
            f"{two}: has the packages {names}, and its recipe asks for model.mlpackage: "
            "`recipe run`, `chat` and `lint` take them all the same\n",
        )


def test_layers_that_no_package_has_are_a_contradiction(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    two = bundle_of_two(tiny_bundle, tmp_path / "two", "halves")
    content = json.loads((two / MANIFEST).read_text())
    content["packages"][1]["layers"] = [3, 4]
    (two / MANIFEST).write_text(json.dumps(content))
    status, _, err = run("run", two, "Hello")
    assert status == 2
    assert err.splitlines() == [
        f"{two}: manifest.json: packages: functions.{name}: layers are [0, 2], [3, 4] and must follow one another "
        "from 0 to 4, by its recipe.yaml"
        for name in ("decode", "prefill")
    ]
