"""Linked functions of whole models: states, weights and names, whatever the layers are."""

from collections import Counter
from typing import Any

import pytest
from programs import (
    RECIPES,
    block_of,
    export,
    layer_kind,
    operation_types,
    read_model,
    small_recipe,
    stored_constants,
    tensor_words,
    type_words,
)

from coreai_recipes.export.cache import FragmentCache

# --- the programs that it makes --------------------------------------------------------------------------------------


@pytest.fixture(params=RECIPES, scope="module")
def linked(request: pytest.FixtureRequest, made: Any, cache: FragmentCache) -> Any:
    name = request.param
    return read_model(made(f"{name}.mlpackage", lambda folder: export(RECIPES[name](), folder, cache)))


def test_no_output_is_a_value_that_is_written_to_a_state(linked: Any) -> None:
    """The runtime crashes at load (coremltools#2713)."""
    for name in linked.mlProgram.functions:
        block = block_of(linked, name)
        written = {op.inputs["data"].arguments[0].name for op in block.operations if op.type == "write_state"}
        assert written
        assert not written & set(block.outputs)


@pytest.mark.parametrize("name", ["gemma4", "sliding"])
def test_nothing_is_gathered_but_from_constants(name: str, made: Any, cache: FragmentCache) -> None:
    """A gather of what a call computes, by indices that it computes, leaves the engine."""
    recipe = RECIPES[name]()
    model = read_model(made(f"{name}.mlpackage", lambda folder: export(recipe, folder, cache)))
    for function in recipe.export.functions.queries:
        operations = block_of(model, function).operations
        constants = {op.outputs[0].name for op in operations if op.type == "const"}
        gathered = [op.inputs["x"].arguments[0].name for op in operations if op.type.startswith("gather")]
        assert gathered
        assert set(gathered) <= constants, function


@pytest.mark.parametrize("name", ["gemma4", "sliding"])
def test_a_layer_writes_its_state_once_and_reads_its_keys_and_values_off_what_it_read(
    name: str, made: Any, cache: FragmentCache
) -> None:
    """No read stands between two writes of a layer; a ring of several tokens is read first, all else behind the write.

    Keys and values are each one slice of the state, or of a ring with the new rows behind it: no more is cut.
    """
    recipe = RECIPES[name]()
    model = read_model(made(f"{name}.mlpackage", lambda folder: export(recipe, folder, cache)))
    kinds, layer_kinds = recipe.model.kinds, recipe.model.layer_kinds
    for function, queries in recipe.export.functions.queries.items():
        made_by = {out.name: op for op in block_of(model, function).operations for out in op.outputs}
        layer, accesses = 0, ["" for _ in layer_kinds]
        for operation in block_of(model, function).operations:
            label = operation.attributes["name"].immediateValue.tensor.strings.values[0]
            if label.startswith("layer_"):
                layer = int(label.split("_")[1])
            if operation.type in ("read_state", "write_state"):
                accesses[layer] += operation.type[0]
        for kind, found in zip(layer_kinds, accesses, strict=True):
            attention = kinds[kind].attention
            if attention.shares_kv_with:
                assert "w" not in found, f"{function}, {kind}"
            elif attention.kind == "sliding" and queries > 1:
                assert found in ("rw", "w"), f"{function}, {kind}"  # a read may be that behind the layer before
            else:
                assert found in ("rwr", "wr"), f"{function}, {kind}"
        read = {name for name, op in made_by.items() if op.type == "read_state"}
        cut = {
            name
            for name, op in made_by.items()
            if op.type == "slice_by_index" and op.inputs["x"].arguments[0].name in read
        }
        assert cut
        for operation in made_by.values():
            used = {argument.name for given in operation.inputs.values() for argument in given.arguments}
            assert not used & cut or operation.type in ("matmul", "transpose", "concat", "mul"), operation.type


def test_all_functions_declare_the_same_states(linked: Any) -> None:
    states = [
        {port.name: type_words(port) for port in function.inputs if port.type.WhichOneof("type") == "stateType"}
        for function in linked.mlProgram.functions.values()
    ]
    assert states[0]
    assert all(found == states[0] for found in states)


def test_every_function_holds_the_same_weights_at_the_same_offsets(linked: Any) -> None:
    found = [
        {(name, tensor_words(kind), offset) for name, kind, offset in stored_constants(linked, function)}
        for function in linked.mlProgram.functions
    ]
    assert found[0]
    assert all(weights == found[0] for weights in found)


def test_every_name_is_defined_once_and_before_it_is_used(linked: Any) -> None:
    for function in linked.mlProgram.functions.values():
        defined = [port.name for port in function.inputs]
        for operation in function.block_specializations[function.opset].operations:
            used = {a.name for i in operation.inputs.values() for a in i.arguments if a.WhichOneof("binding") == "name"}
            assert used <= set(defined)
            defined += [output.name for output in operation.outputs]
        assert len(defined) == len(set(defined))


def test_every_constant_is_used(linked: Any) -> None:
    for name in linked.mlProgram.functions:
        operations = block_of(linked, name).operations
        used = {a.name for op in operations for i in op.inputs.values() for a in i.arguments}
        assert [op.outputs[0].name for op in operations if op.type == "const" and op.outputs[0].name not in used] == []


def test_nothing_in_a_layer_works_out_its_place(linked: Any) -> None:
    """Integer operations of a layer depend on the position; those on the slot were folded."""
    for name in linked.mlProgram.functions:
        for operation in block_of(linked, name).operations:
            used = {a.name for i in operation.inputs.values() for a in i.arguments}
            assert not any(word.startswith("slot_") for word in used - {""}) or operation.type == "concat"


# --- operation counts, a contract: a lost fusion keeps parity and changes the count -----------------------------------

# What one more layer of a Llama adds; with several queries, their heads are brought together and apart again.
A_LAYER = {
    "abs": 2, "add": 7, "concat": 5, "conv": 7, "expand_dims": 2, "matmul": 2, "maximum": 2, "mul": 19, "read_state": 1,
    "real_div": 4, "reduce_max": 2, "reduce_mean": 2, "reshape": 6, "rsqrt": 2, "silu": 1, "slice_by_index": 6,
    "slice_update": 1, "softmax": 1, "sub": 2, "transpose": 2, "write_state": 1,
}  # fmt: skip


SEVERAL_QUERIES = {"reshape": 10, "transpose": 4}


@pytest.mark.parametrize("attention", ["full", "sliding"])
def test_one_more_layer_costs_as_many_operations_as_it_should(attention: str, made: Any, cache: FragmentCache) -> None:
    kinds = {attention: layer_kind(attention)}

    def model(layers: int) -> Any:
        recipe = small_recipe(kinds, [{"repeat": layers, "of": [attention]}])
        return read_model(made(f"{attention}-{layers}.mlpackage", lambda folder: export(recipe, folder, cache)))

    two, three = model(2), model(3)
    for function in ("decode", "prefill"):
        expected = Counter(A_LAYER)
        if function == "prefill":
            expected = Counter(A_LAYER | SEVERAL_QUERIES)
            expected += Counter({"select": 1})  # padding is taken out of keys and values
            if attention == "sliding":  # the ring's new rows, without a gather
                expected += Counter({"matmul": 1, "mul": 1, "add": 1, "slice_by_index": 1})
                expected -= Counter({"concat": 1})  # no end of the rows to work out
        more = operation_types(three, function) - operation_types(two, function)
        assert more == expected, f"a {attention} layer in {function}: {dict(sorted(more.items()))}"
