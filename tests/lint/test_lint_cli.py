"""`recipe lint` as users meet it: words, JSON, exit status, and input that is no program."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coreai_recipes.protobuf import Model_pb2
from tests.evaluate.mil_programs import write_package, write_two_functions
from tests.lint.rule_cases import CASES
from tests.lint.rule_programs import IMAGE, Case, conv, hops

Run = Callable[..., tuple[int, str, str]]


def saved(folder: Path, case: Case) -> Path:
    return write_package(folder / "one.mlpackage", case.build, case.inputs, case.states)


@pytest.fixture(scope="module")
def gathering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("lint"), CASES["gather-dyn"][0])


def test_the_document_holds_findings_and_crossings_and_nothing_else(run: Run, gathering: Path) -> None:
    status, out, _ = run("lint", gathering, "--json")
    document = json.loads(out)
    assert status == 1
    assert document.keys() == {"findings", "crossings"}
    (error,) = [finding for finding in document["findings"] if finding["level"] == "error"]
    assert error == {
        "id": "gather-dyn",
        "level": "error",
        "function": "main",
        "place": "gather_0",
        "message": "gather picks (1, 32) of (1, 64) by computed indices",
        "source": "W, C, H",
        "remedy": "multiply by a one-hot made before the first layer",
    }


def test_crossings_stand_in_running_order(run: Run, tmp_path: Path) -> None:
    package = write_package(tmp_path / "one.mlpackage", hops(2), IMAGE)
    crossings = json.loads(run("lint", package, "--json")[1])["crossings"]
    assert [(each["from"], each["to"]) for each in crossings] == [("engine", "cpu"), ("cpu", "engine")] * 2
    assert crossings[0] == {
        "function": "main", "place": "relu_0", "from": "engine", "to": "cpu", "shape": [1, 32, 1, 32],
    }  # fmt: skip


def test_many_equal_findings_are_one_line_with_a_count(run: Run, tmp_path: Path) -> None:
    package = write_package(tmp_path / "one.mlpackage", hops(3), IMAGE)
    status, out, _ = run("lint", package)
    (line,) = [line for line in out.splitlines() if "no-path" in line]
    assert "main: mod_0 and 2 more" in line
    assert status == 1
    assert "6 changes of unit per call" in out


def test_nothing_but_warnings_is_no_failure(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("lint", saved(tmp_path, CASES["softplus"][0]))
    assert status == 0
    assert "1 warning," in out.splitlines()[-1]


def test_a_rule_for_some_chips_is_their_error_and_elsewhere_a_warning_that_names_them(run: Run, tmp_path: Path) -> None:
    package = write_package(tmp_path / "one.mlpackage", lambda x: conv(x, 32), {"x": ("float16", (1, 32, 1, 32768))})
    levels = {}
    for device in (None, "M1", "m3", "M4"):
        chosen = () if device is None else ("--device", device)
        status, out, _ = run("lint", package, "--json", *chosen)
        found = [finding for finding in json.loads(out)["findings"] if finding["id"] == "width-16k"]
        named = {finding["message"].endswith("(on M1, M2, M3, A14)") for finding in found}
        levels[device] = {finding["level"] for finding in found}, named, status
    assert levels == {
        None: ({"warning"}, {True}, 0), "M1": ({"error"}, {False}, 1), "m3": ({"error"}, {False}, 1),
        "M4": (set(), set(), 0),
    }  # fmt: skip


def test_each_function_of_a_package_is_looked_at(run: Run, tmp_path: Path, gathering: Path) -> None:
    other = saved(tmp_path, CASES["gather-dyn"][1])
    package = write_two_functions(tmp_path / "two.mlpackage", other, gathering)
    found = [f for f in json.loads(run("lint", package, "--json")[1])["findings"] if f["id"] == "gather-dyn"]
    assert [finding["function"] for finding in found] == ["second"]


def test_a_rule_explains_itself(run: Run) -> None:
    status, out, _ = run("lint", "--explain", "state-rows")
    assert status == 0
    assert "disputed: Anemll#27 says 32, N ships 64" in out
    assert "--set export.functions.prefill=64" in out
    assert json.loads(run("lint", "--explain", "state-rows", "--json")[1])["id"] == "state-rows"


NAMED = (
    "A14, iphone-12, iphone-12-pro, A15, iphone-13, iphone-13-pro, iphone-14, A16, iphone-14-pro, iphone-15, A17, "
    "iphone-15-pro, A18, iphone-16, iphone-16-pro, A19, iphone-17, iphone-17-pro, M1, m1-max, M2, M3, m3-max, M4, M5"
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "recipe lint: give a package, a bundle or a recipe, or a rule with --explain"),
        (("--explain", "state-row"), "'state-row': no such rule: did you mean state-rows? docs/lint.md lists them"),
        (
            ("smollm2-135m", "--device", "iphone17-pro"),
            f"--device 'iphone17-pro': no such device: did you mean iphone-17-pro? the devices are {NAMED}",
        ),
        (
            ("smollm2-135m", "--device", "M9"),
            f"--device 'M9': no such device: the devices are {NAMED}",
        ),
    ],
)  # fmt: skip
def test_wrong_words_are_one_sentence(run: Run, arguments: tuple[str, ...], said: str) -> None:
    status, out, error = run("lint", *arguments)
    assert (status, out) == (2, "")
    assert error.strip() == said


def test_what_is_no_program_is_one_sentence(run: Run, tmp_path: Path, gathering: Path) -> None:
    def says(path: Path, words: str) -> None:
        status, out, error = run("lint", path)
        assert (status, out, error) == (2, "", f"{path}{words}\n")

    (tmp_path / "empty.mlpackage").mkdir()
    says(tmp_path / "empty.mlpackage", ": is not an .mlpackage: it has no Manifest.json")
    (tmp_path / "cut.mlmodel").write_bytes(b"\x08\x09\xff")
    says(tmp_path / "cut.mlmodel", ": is truncated, or not a Core ML model")
    (tmp_path / "none.mlmodel").write_bytes(b"")
    says(tmp_path / "none.mlmodel", ": is not an ML Program but empty: only ML Programs can be linted")
    older = Model_pb2.Model(specificationVersion=4)  # before there were ML Programs
    older.neuralNetwork.layers.add(name="relu", input=["x"], output=["y"]).activation.ReLU.SetInParent()
    (tmp_path / "older.mlmodel").write_bytes(older.SerializeToString())
    says(tmp_path / "older.mlmodel", ": is not an ML Program but neuralNetwork: only ML Programs can be linted")
    functions = Model_pb2.Model(specificationVersion=7)
    functions.mlProgram.version = 1
    (tmp_path / "functions.mlmodel").write_bytes(functions.SerializeToString())
    says(tmp_path / "functions.mlmodel", ": is an ML Program without functions")
    functions.mlProgram.functions["main"].opset = "CoreML8"
    (tmp_path / "before.mlmodel").write_bytes(functions.SerializeToString())
    says(
        tmp_path / "before.mlmodel",
        ": is of specification 7 (iOS 16), and its functions are of CoreML8, which needs 9 (iOS 18): Core ML does not "
        "load it",
    )
    says(tmp_path / "gone.mlmodel", ": is not there")
    outside = tmp_path / "outside.mlpackage"
    shutil.copytree(gathering, outside)
    (outside / "Manifest.json").write_text(
        json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../secret"}}})
    )
    says(outside, ": its Manifest.json names '../../secret', which is not a path inside the bundle")


def test_weights_that_are_not_whole_are_one_sentence(run: Run, tmp_path: Path) -> None:
    package = write_package(tmp_path / "one.mlpackage", lambda x: conv(x, 32), IMAGE)
    (file,) = package.glob("Data/**/weight.bin")
    content = file.read_bytes()
    assert run("lint", package)[0] == 0

    def says(changed: bytes | None, words: str) -> None:
        if changed is not None:
            file.write_bytes(changed)
        status, out, error = run("lint", package)
        assert (status, out, error) == (2, "", f"{words}\n")

    end = 128 + 2 * 32 * 32
    cut = f"{file}: is {end - 2} bytes, but the weight at byte 64 ends at byte {end}: the file is truncated"
    says(content[: end - 2], cut)
    says(content[:100], f"{file}: is 100 bytes, but the program has a weight at byte 64: the file is truncated")
    says(content[:64] + bytes(64) + content[128:], f"{file}: there is no weight at byte 64, where the program has one")
    file.unlink()
    named = "'@model_path/weights/weight.bin'"
    says(None, f"{package}: its program's weights are in {named}, which is not a file of it")


def test_a_models_own_file_is_looked_at_as_its_package_is(run: Run, tmp_path: Path, gathering: Path) -> None:
    file = shutil.copy(next(gathering.glob("Data/**/*.mlmodel")), tmp_path / "alone.mlmodel")
    alone, whole = (json.loads(run("lint", path, "--json")[1]) for path in (file, gathering))
    assert alone == whole
