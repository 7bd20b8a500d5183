"""What the linker does to fragments: for each rewrite a program where it fires and one where it must not."""

from collections.abc import Sequence
from typing import Any

import pytest
from coremltools.proto import MIL_pb2, Model_pb2
from programs import (
    type_words,
)

from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.targets.coreml.linker import FunctionLinker
from coreai_recipes.targets.coreml.mil import set_type
from coreai_recipes.targets.coreml.version import OPSET

INT, HALF, BOOL = MIL_pb2.INT32, MIL_pb2.FLOAT16, MIL_pb2.BOOL


class FragmentBuilder:
    """A converted fragment, written operation by operation."""

    def __init__(self) -> None:
        self.model = Model_pb2.Model()
        function = self.model.mlProgram.functions["main"]
        function.opset = OPSET
        self.function, self.block = function, function.block_specializations[OPSET]

    def input(self, name: str, dtype: int, shape: Sequence[int]) -> str:
        set_type(self.function.inputs.add(name=name).type.tensorType, dtype, shape)
        return name

    def state(self, name: str, shape: Sequence[int]) -> str:
        set_type(self.function.inputs.add(name=name).type.stateType.wrappedType.tensorType, HALF, shape)
        return name

    def integers(self, name: str, *values: int, shape: Sequence[int] | None = None) -> str:
        operation = self.block.operations.add(type="const")
        shape = [len(values)] if shape is None else shape
        set_type(operation.outputs.add(name=name).type.tensorType, INT, shape)
        operation.attributes["val"].type.CopyFrom(operation.outputs[0].type)
        operation.attributes["val"].immediateValue.tensor.ints.values.extend(values)
        return name

    def operation(
        self, kind: str, output: str | None, dtype: int = INT, shape: Sequence[int | None] = (), **inputs: Any
    ) -> str:
        operation = self.block.operations.add(type=kind)
        for key, names in inputs.items():
            for name in [names] if isinstance(names, str | int) else names:
                argument = operation.inputs[key].arguments.add()
                if isinstance(name, int):
                    argument.value.immediateValue.tensor.ints.values.append(name)
                else:
                    argument.name = name
        if output is not None:
            tensor = operation.outputs.add(name=output).type.tensorType
            set_type(tensor, dtype, [size or 0 for size in shape])
            for dimension, size in zip(tensor.dimensions, shape, strict=True):
                if size is None:
                    dimension.unknown.variadic = False
        return output or ""


def new_linker() -> FunctionLinker:
    linker = FunctionLinker(WeightLayout(), MIL_pb2.Function())
    linker.add_input("position", "int32", (1,))
    linker.add_input("x", "float16", (4,))
    return linker


def operations_of(linker: FunctionLinker, kind: str | None = None) -> list[Any]:
    return [op for op in linker.block.operations if kind in (None, op.type)]


# --- folding the slot -----------------------------------------------------------------------------------------------


def rows_of_the_slot(layers: int = 5) -> FragmentBuilder:
    """begin = [slot, 0, 0], end = [slot + 1, 2, 3], the layer's rows of a state, as coremltools converts it."""
    fragment = FragmentBuilder()
    fragment.input("slot", INT, (1,))
    fragment.state("keys", (layers, 2, 3))
    fragment.integers("one", 1)
    fragment.integers("zeros", 0, 0)
    fragment.integers("sizes", 2, 3)
    fragment.operation("add", "next", INT, (1,), x="slot", y="one")
    fragment.operation("concat", "begin", INT, (3,), values=["slot", "zeros"])
    fragment.operation("concat", "end", INT, (3,), values=["next", "sizes"])
    fragment.operation("read_state", "state", HALF, (layers, 2, 3), input="keys")
    fragment.operation("slice_by_index", "rows", HALF, (None, None, None), x="state", begin="begin", end="end")
    fragment.operation("identity", "y", HALF, (1, 2, 3), x="rows")
    return fragment


def link_rows(layers: int, slot: int) -> FunctionLinker:
    linker = new_linker()
    linker.add_state("k_full", (layers, 2, 3))
    names = {"keys": "k_full", "slot": linker.add_integer("slot_7", slot), "y": "out"}
    linker.append(rows_of_the_slot(layers).model, "layer_7_", names, {})
    linker.add_output("out")
    return linker


def test_what_depends_on_the_slot_alone_becomes_constants() -> None:
    linker = link_rows(5, 3)
    constants = {
        op.outputs[0].name: list(op.attributes["val"].immediateValue.tensor.ints.values)
        for op in operations_of(linker, "const")
    }
    assert constants == {"layer_7_begin": [3, 0, 0], "layer_7_end": [4, 2, 3]}
    assert [op.type for op in operations_of(linker) if op.type != "const"] == [
        "read_state",
        "slice_by_index",
        "identity",
    ]


def test_a_slice_at_a_known_slot_has_known_dimensions() -> None:
    (rows,) = operations_of(link_rows(5, 3), "slice_by_index")
    assert type_words(rows.outputs[0]) == "float16(1, 2, 3)"


def test_a_slice_of_the_only_layer_is_the_state_itself() -> None:
    linker = link_rows(1, 0)
    assert operations_of(linker, "slice_by_index") == []
    (read,), (identity,) = operations_of(linker, "read_state"), operations_of(linker, "identity")
    assert identity.inputs["x"].arguments[0].name == read.outputs[0].name


def test_what_depends_on_the_position_is_left_to_the_program() -> None:
    fragment = FragmentBuilder()
    fragment.input("position", INT, (1,))
    fragment.integers("one", 1)
    fragment.operation("add", "next", INT, (1,), x="position", y="one")
    linker = new_linker()
    linker.append(fragment.model, "a_", {"position": "position", "next": "next"}, {})
    assert [op.type for op in operations_of(linker)] == ["const", "add"]


# --- working out once what layers share -----------------------------------------------------------------------------


def two_additions(dtype: int, first: str | int = "one", second: str | int = "one") -> FunctionLinker:
    """x + first in one fragment, x + second in the next."""
    linker = new_linker()
    shape = (1,) if dtype == INT else (4,)
    for index, added in enumerate((first, second)):
        fragment = FragmentBuilder()
        fragment.input("x", dtype, shape)
        fragment.integers("one", 1)
        fragment.integers("two", 2)
        fragment.operation("add", "sum", dtype, shape, x="x", y=added)
        fragment.operation("identity", "y", dtype, shape, x="sum")
        names = {"x": "position" if dtype == INT else "x", "y": f"y_{index}"}
        linker.append(fragment.model, f"layer_{index}_", names, {})
    return linker


def test_equal_integer_operations_of_two_layers_are_one() -> None:
    linker = two_additions(INT)
    (addition,) = operations_of(linker, "add")
    operands = [op.inputs["x"].arguments[0].name for op in operations_of(linker, "identity")]
    assert operands[0] == addition.outputs[0].name
    assert [op.outputs[0].name for op in operations_of(linker, "identity")] == ["y_0", "y_1"]


def test_integer_operations_on_different_constants_stay_two() -> None:
    assert len(operations_of(two_additions(INT, "one", "two"), "add")) == 2


@pytest.mark.parametrize(("second", "count"), [(1, 1), (2, 2)])
def test_an_operand_given_in_place_counts_by_its_value(second: int, count: int) -> None:
    """Its name is empty, and so equal to that of any other operand given in place."""
    assert len(operations_of(two_additions(INT, 1, second), "add")) == count


def test_operands_given_in_place_in_one_fragment_are_told_apart() -> None:
    fragment = FragmentBuilder()
    fragment.input("position", INT, (1,))
    for added in (1, 2):
        fragment.operation("add", f"sum_{added}", INT, (1,), x="position", y=added)
    linker = new_linker()
    linker.append(fragment.model, "a_", {"position": "position"}, {})
    assert len(operations_of(linker, "add")) == 2


def test_operations_on_floats_are_never_one() -> None:
    assert len(operations_of(two_additions(HALF), "add")) == 2


def updates(names: Sequence[str], read_after_write: bool = True) -> FunctionLinker:
    """For each name a layer that reads that state, writes it and reads it again."""
    linker = new_linker()
    for name in dict.fromkeys(names):
        linker.add_state(name, (2, 3))
    for index, name in enumerate(names):
        fragment = FragmentBuilder()
        fragment.state("keys", (2, 3))
        fragment.operation("read_state", "old", HALF, (2, 3), input="keys")
        fragment.operation("identity", "new", HALF, (2, 3), x="old")
        fragment.operation("write_state", None, input="keys", data="new")
        fragment.operation("read_state", "seen", HALF, (2, 3), input="keys")
        fragment.operation("identity", "y", HALF, (2, 3), x="seen")
        linker.append(fragment.model, f"layer_{index}_", {"keys": name, "y": f"y_{index}"}, {})
    return linker


def sources(linker: FunctionLinker, kind: str) -> list[str]:
    return [op.inputs["x"].arguments[0].name for op in operations_of(linker, kind)]


def test_a_state_that_nothing_wrote_since_is_not_read_again() -> None:
    linker = updates(["k", "k"])
    assert [op.outputs[0].name for op in operations_of(linker, "read_state")] == [
        "layer_0_old",
        "layer_0_seen",
        "layer_1_seen",
    ]
    assert sources(linker, "identity")[2] == "layer_0_seen"


def test_a_state_is_read_again_after_every_write() -> None:
    linker = updates(["k", "k"])
    kinds = [op.type for op in operations_of(linker) if op.type.endswith("_state")]
    assert kinds == ["read_state", "write_state", "read_state", "write_state", "read_state"]
    assert sources(linker, "identity") == ["layer_0_old", "layer_0_seen", "layer_0_seen", "layer_1_seen"]


def test_a_write_to_one_state_leaves_another_as_it_was_read() -> None:
    linker = updates(["k", "v", "k"])
    assert sources(linker, "identity")[4] == "layer_0_seen"
    assert len(operations_of(linker, "read_state")) == 5


# --- names and constants --------------------------------------------------------------------------------------------


def test_a_name_without_a_definition_is_refused() -> None:
    fragment = FragmentBuilder()
    fragment.operation("identity", "y", HALF, (4,), x="nowhere")
    with pytest.raises(RuntimeError, match="layer_0_nowhere"):
        new_linker().append(fragment.model, "layer_0_", {}, {})


def test_an_input_that_is_bound_to_nothing_is_refused() -> None:
    fragment = FragmentBuilder()
    fragment.input("x", HALF, (4,))
    fragment.operation("identity", "y", HALF, (4,), x="x")
    with pytest.raises(RuntimeError, match="hidden_3"):
        new_linker().append(fragment.model, "layer_3_", {"x": "hidden_3"}, {})


def test_an_output_that_nothing_computes_is_refused() -> None:
    with pytest.raises(RuntimeError, match="logits"):
        new_linker().add_output("logits")


def test_constants_that_nothing_uses_are_dropped() -> None:
    linker = two_additions(INT)
    assert [op.outputs[0].name for op in operations_of(linker, "const")] == ["layer_0_one"]


def test_a_stored_constant_in_a_fragment_is_refused() -> None:
    fragment = FragmentBuilder()
    fragment.integers("weight", 1)
    fragment.block.operations[0].attributes["val"].ClearField("immediateValue")
    fragment.block.operations[0].attributes["val"].blobFileValue.offset = 64
    with pytest.raises(RuntimeError, match="layer_0_weight: a stored constant in a fragment"):
        new_linker().append(fragment.model, "layer_0_", {}, {})


def test_a_weight_is_one_constant_for_each_shape_and_one_blob_for_all() -> None:
    linker = new_linker()
    names = [linker.add_weight("embedding.weight", shape) for shape in ((8, 4), (8, 4), (8, 4, 1, 1))]
    assert names[0] == names[1] != names[2]
    stored = [op.attributes["val"].blobFileValue.offset for op in operations_of(linker, "const")]
    assert stored == [64, 64]
    assert list(linker.layout.placed) == ["embedding.weight"]
