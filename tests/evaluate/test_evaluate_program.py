"""Opening packages, calling functions, and every sentence that a user can cause."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.proto import Model_pb2
from mil_programs import write_package
from torch import nn

from coreai_recipes.evaluate import EvaluationError, Program

WEIGHT = np.ones((64, 64), np.float32)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(x: Any, ids: Any) -> Any:
        total = mb.linear(x=x, weight=WEIGHT, name="total")
        return [mb.gather(x=total, indices=ids, axis=1, name="picked"), mb.mul(x=total, y=np.float32(2), name="twice")]

    path = tmp_path_factory.mktemp("program") / "small.mlpackage"
    return write_package(path, build, {"x": ("float32", (1, 64)), "ids": ("int32", (2,))})


def copy_of(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))


def model_file(package: Path) -> Path:
    return next(package.glob("Data/**/*.mlmodel"))


def rewrite(package: Path, change: Any) -> None:
    model = Model_pb2.Model()
    model.ParseFromString(model_file(package).read_bytes())
    change(model)
    model_file(package).write_bytes(model.SerializeToString())


def only_block(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def problem(call: Any) -> str:
    with pytest.raises(EvaluationError) as caught:
        call()
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_a_function_describes_itself(package: Path) -> None:
    program = Program(package)
    function = program.function()
    assert program.functions == ("main",)
    assert function.inputs == {"x": ("float32", (1, 64)), "ids": ("int32", (2,))}
    assert function.outputs == {"picked": ("float32", (1, 2)), "twice": ("float32", (1, 64))}
    assert function.states == {}
    assert program.make_state() == {}
    assert function.operation_counts() == {"linear": 1, "gather": 1, "mul": 1}


def test_watch_sees_each_result_or_those_that_it_names(package: Path) -> None:
    function = Program(package).function()
    inputs = {"x": torch.ones(1, 64), "ids": [0, 1]}
    seen: list[tuple[str, str, float]] = []

    def watch(name: str, value: torch.Tensor, kind: str) -> None:
        seen.append((name, kind, value.max().item()))

    for _ in range(2):
        seen.clear()
        function(inputs, watch=watch)
        assert seen == [("total", "linear", 64), ("picked", "gather", 64), ("twice", "mul", 128)]
        seen.clear()
        function(inputs, watch=watch, watch_names={"twice"})
        assert seen == [("twice", "mul", 128)]


def test_opening_the_room_imports_neither_torch_nor_coremltools() -> None:
    code = (
        "import sys, coreai_recipes.evaluate as e; e.EvaluationError; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'coremltools')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrong_inputs_are_each_a_sentence(package: Path) -> None:
    function = Program(package).function()
    x, ids = torch.ones(1, 64), torch.tensor([0, 1])
    with pytest.raises(EvaluationError) as caught:
        function({"X": x})
    assert caught.value.problems == (
        "function main needs the input x, float32 (1, 64)",
        "function main needs the input ids, int32 (2,)",
        "function main has no input X: its inputs are x, ids",
    )
    assert problem(lambda: function({"x": x[0], "ids": ids})) == (
        "function main: input x is float32 (64,), but must be float32 (1, 64)"
    )
    assert problem(lambda: function({"x": x, "ids": ids.float()})) == (
        "function main: input ids is float32 (2,), but must be int32 (2,)"
    )
    assert problem(lambda: function({"x": x, "ids": "ab"})) == "function main: input ids is not a tensor of numbers"
    assert "has no function prefill: its functions are main" in problem(lambda: Program(package).function("prefill"))


def test_an_index_out_of_range_names_the_operation_the_index_and_the_range(package: Path) -> None:
    function = Program(package).function()
    for _ in range(2):  # the first call is a checked one, the second is not
        assert problem(lambda: function({"x": torch.ones(1, 64), "ids": [3, 64]})) == (
            "gather picked: index 64 is not in [0, 64)"
        )
        assert problem(lambda: function({"x": torch.ones(1, 64), "ids": [-1, 0]})) == (
            "gather picked: index -1 is not in [0, 64)"
        )
        function({"x": torch.ones(1, 64), "ids": [3, 63]})


def test_a_slice_out_of_range_names_the_operation_and_the_range(tmp_path: Path) -> None:
    def build(x: Any, begin: Any, end: Any) -> Any:
        first = mb.slice_by_index(x=x, begin=begin, end=end, name="cut")
        row = mb.slice_update(x=x, update=np.float32([[1, 2]]), begin=begin, end=end, name="written")
        part = mb.slice_by_size(x=x, begin=begin, size=[1, 2], name="sized")
        return [mb.reduce_sum(x=first), row, part]

    specs = {"x": ("float32", (4, 8)), "begin": ("int32", (2,)), "end": ("int32", (2,))}
    function = Program(write_package(tmp_path / "slices.mlpackage", build, specs)).function()
    x = torch.zeros(4, 8)
    function({"x": x, "begin": [0, 6], "end": [1, 8]})
    assert problem(lambda: function({"x": x, "begin": [0, 7], "end": [1, 9]})) == (
        "slice_by_index cut: range [7, 9) on axis 1 is not within its 8 elements"
    )
    assert problem(lambda: function({"x": x, "begin": [0, 5], "end": [1, 8]})) == (
        "slice_update written: the update is (1, 2), the part that it replaces (1, 3)"
    )
    assert problem(lambda: function({"x": x, "begin": [5, 0], "end": [4, 2]})).startswith(
        "slice_by_index cut: range [5, 4)"
    )


def test_operations_that_are_not_known_are_all_named_at_preparation(package: Path, tmp_path: Path) -> None:
    path = copy_of(package, tmp_path)

    def change(model: Any) -> None:
        for operation in only_block(model).operations:
            operation.type = {"linear": "lstm", "gather": "resize"}.get(operation.type, operation.type)

    rewrite(path, change)
    with pytest.raises(EvaluationError) as caught:
        Program(path).function()
    assert caught.value.problems == (
        f"{path}: function main: lstm (output total) is an operation that cannot be evaluated",
        f"{path}: function main: resize (output picked) is an operation that cannot be evaluated",
    )


def test_control_flow_is_refused_by_name(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        positive = mb.squeeze(x=mb.greater(x=x, y=np.float32(0)))
        return mb.cond(
            pred=positive, _true_fn=lambda: mb.add(x=x, y=x), _false_fn=lambda: mb.mul(x=x, y=x), name="fork"
        )

    path = write_package(tmp_path / "cond.mlpackage", build, {"x": ("float32", (1,))})
    assert problem(lambda: Program(path).function()).endswith(
        "function main: cond (output fork) is control flow, which cannot be evaluated"
    )


def test_a_result_of_another_shape_than_declared_is_refused(package: Path, tmp_path: Path) -> None:
    path = copy_of(package, tmp_path)

    def change(model: Any) -> None:
        for operation in only_block(model).operations:
            if operation.type == "mul":
                operation.outputs[0].type.tensorType.dimensions[1].constant.size = 32

    rewrite(path, change)
    function = Program(path).function()
    assert problem(lambda: function({"x": torch.ones(1, 64), "ids": [0, 1]})) == (
        "mul twice: is (1, 64), but the program declares (1, 32)"
    )


def test_a_package_that_cannot_be_read_is_a_sentence(package: Path, tmp_path: Path) -> None:
    assert problem(lambda: Program(tmp_path / "none")) == f"{tmp_path / 'none'}: there is no such package"
    (tmp_path / "empty").mkdir()
    assert problem(lambda: Program(tmp_path / "empty")) == (
        f"{tmp_path / 'empty'}: is not an .mlpackage: it has no Manifest.json"
    )
    path = copy_of(package, tmp_path)
    manifest = path / "Manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text("{")
    assert problem(lambda: Program(path)) == f"{manifest}: does not name the package's model"
    content["itemInfoEntries"][content["rootModelIdentifier"]]["path"] = "gone.mlmodel"
    manifest.write_text(json.dumps(content))
    assert problem(lambda: Program(path)) == f"{path}: its Manifest.json names gone.mlmodel, which is not there"


def test_a_model_that_is_cut_short_or_of_another_kind_is_a_sentence(package: Path, tmp_path: Path) -> None:
    path = copy_of(package, tmp_path)
    whole = model_file(path).read_bytes()
    model_file(path).write_bytes(whole[: len(whole) // 2])
    assert problem(lambda: Program(path)) == f"{model_file(path)}: is truncated, or not a Core ML model"
    model = Model_pb2.Model()
    model.identity.SetInParent()
    model_file(path).write_bytes(model.SerializeToString())
    assert problem(lambda: Program(path)) == (f"{path}: is not an ML Program but identity: only ML Programs can be run")


def test_weights_that_are_missing_short_or_elsewhere_are_a_sentence(package: Path, tmp_path: Path) -> None:
    path = copy_of(package, tmp_path)
    weights = next(path.glob("Data/**/weight.bin"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "the file is truncated" in problem(lambda: Program(path).function())
    weights.write_bytes(whole[:70])
    assert "is 70 bytes, but the program needs a weight at byte 64" in problem(lambda: Program(path).function())
    weights.write_bytes(b"\0" * len(whole))
    assert "there is no weight at byte 64, where the program needs one" in problem(lambda: Program(path).function())
    weights.unlink()
    assert "the program's weights cannot be read" in problem(lambda: Program(path).function())

    def change(model: Any) -> None:
        for operation in only_block(model).operations:
            if operation.type == "const" and operation.attributes["val"].WhichOneof("value") == "blobFileValue":
                operation.attributes["val"].blobFileValue.fileName = "@model_path/../../../../secret.bin"

    rewrite(path, change)
    assert "lie outside the package" in problem(lambda: Program(path).function())


class CachedStep(nn.Module):
    """A projection whose rows go to a cache; the step attends over all rows so far."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(32, 32), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.register_buffer("cache", torch.zeros(1, 8, 32))

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        place = position[0]
        self.cache[:, place : place + 1] = self.key(x)
        scores = self.query(self.norm(x)) @ self.cache.transpose(1, 2)
        mask = (torch.arange(8) > position) * -1e4
        return torch.softmax(scores * 0.25 + mask, -1) @ self.cache


def test_a_traced_module_with_a_state_is_what_torch_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = CachedStep().eval()
    example = (torch.ones(1, 1, 32), torch.ones(1, dtype=torch.int32))
    model = ct.convert(
        torch.jit.trace(module, example),
        inputs=[
            ct.TensorType("x", shape=(1, 1, 32), dtype=np.float16),
            ct.TensorType("position", shape=(1,), dtype=np.int32),
        ],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=(1, 8, 32), dtype=np.float16), "cache")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "step.mlpackage"))
    program = Program(tmp_path / "step.mlpackage")
    state, function = program.make_state(), program.function()
    module.cache.zero_()
    module.half().float()  # the weights as they are stored
    with torch.no_grad():
        for position in range(8):
            inputs = torch.randn(1, 1, 32), torch.tensor([position], dtype=torch.int32)
            theirs = module(*inputs)
            ours = function({"x": inputs[0], "position": inputs[1]}, state)["y"]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(state["cache"], module.cache, rtol=1e-4, atol=1e-5)
    assert not function.overflowed


def test_a_result_that_is_larger_than_declared_takes_no_memory(tmp_path: Path) -> None:
    path = write_package(
        tmp_path / "tile.mlpackage", lambda x: mb.tile(x=x, reps=[1, 2, 1, 3]), {"x": ("float32", (1, 2, 3, 4))}
    )

    def repeat_more(model: Any) -> None:
        (reps,) = (op for op in only_block(model).operations if op.type == "const" and "reps" in op.outputs[0].name)
        del reps.attributes["val"].immediateValue.tensor.ints.values[:]
        reps.attributes["val"].immediateValue.tensor.ints.values.extend([1 << 10, 1 << 10, 1 << 10, 3])

    rewrite(path, repeat_more)
    function = Program(path).function()
    assert problem(lambda: function({"x": torch.zeros(1, 2, 3, 4)})) == (
        "tile tile_0: has 77309411328 elements, but the program declares (1, 4, 3, 12)"
    )
