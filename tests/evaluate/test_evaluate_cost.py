"""What a call costs, counted by hand on small programs, and on each registered operation for the arithmetic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from mil_programs import share_equal_blobs, write_package, write_two_functions
from operation_cases import CASES

from coreai_recipes.evaluate import EvaluationError
from coreai_recipes.evaluate.cost import Cost, function_costs
from coreai_recipes.evaluate.counting import each_result, nothing
from coreai_recipes.evaluate.opset import OPERATIONS

generator = np.random.default_rng(0)


def halves(*shape: int) -> Any:
    return generator.standard_normal(shape).astype(np.float16)


def times(x: Any, weight: Any) -> Any:
    """A linear map; mb.linear would store a bias of zeros with it."""
    return mb.matmul(x=x, y=weight, transpose_y=True)


def cost_of(path: Path, build: Callable[..., Any], states: Any = None, **inputs: tuple[str, tuple[int, ...]]) -> Cost:
    (cost,) = function_costs(write_package(path / "cost.mlpackage", build, inputs, states)).values()
    return cost


# --- arithmetic -------------------------------------------------------------------------------------------------------


FLOPS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "one function of each element": (lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), 2 * 6 * 4),
    "a sum is broadcast": (lambda x: mb.add(x=x, y=halves(5, 1, 1, 1)), 5 * 2 * 6 * 4),
    "softmax": (lambda x: mb.softmax(x=x, axis=1), 5 * 2 * 6 * 4),
    "a reduction passes over what it takes": (lambda x: mb.reduce_sum(x=x, axes=[1]), 2 * 6 * 4),
    "the best of some": (lambda x: mb.topk(x=x, k=2, axis=1)[0], 2 * 6 * 4),
    "layout": (lambda x: mb.transpose(x=mb.reshape(x=x, shape=[12, 4]), perm=[1, 0]), 0),
    "a cast": (lambda x: mb.cast(x=x, dtype="fp32"), 0),
    "matmul": (lambda x: mb.matmul(x=x, y=halves(4, 7)), 2 * 2 * 6 * 4 * 7),
    "matmul, x transposed": (lambda x: mb.matmul(x=x, y=halves(6, 7), transpose_x=True), 2 * 2 * 4 * 6 * 7),
    "matmul, y transposed": (lambda x: mb.matmul(x=x, y=halves(7, 4), transpose_y=True), 2 * 2 * 6 * 4 * 7),
    "matmul, a stack": (lambda x: mb.matmul(x=halves(9, 2, 3, 6), y=x), 2 * 9 * 2 * 3 * 6 * 4),
    "linear, its bias": (lambda x: mb.linear(x=x, weight=halves(7, 4), bias=halves(7)), (2 * 4 + 1) * 2 * 6 * 7),
    "conv": (lambda x: mb.conv(x=x, weight=halves(7, 2, 1, 1)), 2 * 7 * 2 * 6 * 4),
    "conv with a bias": (lambda x: mb.conv(x=x, weight=halves(7, 2, 1, 1), bias=halves(7)), (2 * 2 + 1) * 7 * 6 * 4),
    "conv, wide, in groups": (lambda x: mb.conv(x=x, weight=halves(4, 1, 3, 2), groups=2), 2 * 4 * 1 * 6 * (4 * 3)),
    "einsum": (lambda x: mb.einsum(values=(x, halves(1, 4, 6, 3)), equation="nchw,nwhu->nchu"), 2 * 2 * 6 * 4 * 3),
    "attention": (
        lambda x: mb.scaled_dot_product_attention(query=x, key=halves(1, 2, 9, 4), value=halves(1, 2, 9, 3)),
        2 * 6 * 9 * (2 * 4 + 1 + 5) + 2 * (2 * 6 * 3) * 9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOPS)
def test_arithmetic_is_counted_from_the_shapes(name: str, tmp_path: Path) -> None:
    build, expected = FLOPS[name]
    assert cost_of(tmp_path, build, x=("float16", (1, 2, 6, 4))).flops == expected


def test_what_does_not_read_all_of_x_or_writes_in_place_computes_nothing() -> None:
    partial = {name: stated for name, stated in OPERATIONS.items() if stated.reads != "all" or stated.updates}
    assert {"reshape", "gather", "slice_by_index", "slice_update", "scatter_nd"} <= partial.keys()
    assert [name for name, stated in partial.items() if stated.flops is not nothing] == []


def test_what_states_no_arithmetic_gives_one_result_an_element() -> None:
    """An operation that is not elementwise must state its own: its result is not what its operands broadcast to."""
    for case in CASES:
        if OPERATIONS[case.operation].flops is not each_result:
            continue
        shapes = [tuple(value.shape) for value in case.inputs]
        expected = case.expected(*case.inputs)
        assert tuple(expected.shape) == np.broadcast_shapes(*shapes), case.name


# --- weights ----------------------------------------------------------------------------------------------------------


X, IDS = ("float16", (1, 64)), ("int32", (3,))
TABLE = halves(100, 64)


def test_a_weight_is_counted_as_stored_and_once(tmp_path: Path) -> None:
    weight = halves(64, 64)

    def build(x: Any) -> Any:
        kept = mb.const(val=weight)
        return times(times(x, kept), kept)

    cost = cost_of(tmp_path, build, x=X)
    assert cost == Cost(2 * 2 * 64 * 64, 2 * 64 * 64, 0, {"matmul": 2}, 2 * 2 * 64, 2 * 2 * 64)


def test_a_blob_that_two_constants_share_is_counted_once(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        column = mb.reshape(x=x, shape=[1, 64, 1, 1])
        return [times(x, TABLE), mb.conv(x=column, weight=TABLE[..., None, None])]

    path = write_package(tmp_path / "tied.mlpackage", build, {"x": X})
    assert function_costs(path)["main"].weight_bytes == 2 * TABLE.nbytes
    assert function_costs(share_equal_blobs(path))["main"].weight_bytes == TABLE.nbytes


def test_of_a_table_that_is_gathered_from_the_rows_are_counted(tmp_path: Path) -> None:
    cost = cost_of(tmp_path, lambda ids: mb.gather(x=TABLE, indices=ids, axis=0), ids=IDS)
    assert cost == Cost(0, 3 * 64 * 2, 0, {"gather": 1}, 3 * 64 * 2, 3 * 64 * 2)


GATHERS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "the same rows of two gathers": (
        lambda ids, table: [mb.gather(x=table, indices=ids, axis=0), mb.gather(x=table, indices=ids, axis=0)],
        3 * 64,
    ),
    "other rows": (
        lambda ids, table: [
            mb.gather(x=table, indices=ids, axis=0),
            mb.gather(x=table, indices=mb.add(x=ids, y=np.int32(1)), axis=0),
        ],
        6 * 64,
    ),
    "more rows than there are": (
        lambda ids, table: mb.gather(x=table, indices=mb.tile(x=ids, reps=[50]), axis=0),
        100 * 64,
    ),
    "columns": (lambda ids, table: mb.gather(x=table, indices=ids, axis=1), 3 * 100),
    "rows of another shape": (
        lambda ids, table: mb.gather(x=mb.reshape(x=table, shape=[50, 2, 64]), indices=ids, axis=0),
        3 * 128,
    ),
    "a slice": (lambda ids, table: [ids, mb.slice_by_index(x=table, begin=[4, 0], end=[9, 64])], 5 * 64),
    "rows, and all for a product": (
        lambda ids, table: mb.matmul(x=mb.gather(x=table, indices=ids, axis=0), y=table, transpose_y=True),
        100 * 64,
    ),
    "a gather is what reads a view": (
        lambda ids, table: mb.gather(x=mb.squeeze(x=mb.expand_dims(x=table, axes=[0]), axes=[0]), indices=ids, axis=0),
        3 * 64,
    ),
    "a transpose reads all": (
        lambda ids, table: mb.gather(x=mb.transpose(x=table, perm=[1, 0]), indices=ids, axis=1),
        100 * 64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GATHERS)
def test_what_is_read_of_a_table(name: str, tmp_path: Path) -> None:
    build, elements = GATHERS[name]
    cost = cost_of(tmp_path, lambda ids: build(ids, mb.const(val=TABLE)), ids=IDS)
    assert cost.weight_bytes == 2 * elements


def compressed_table() -> Any:
    int4 = types.np_int4_dtype
    data = generator.integers(-8, 8, (512, 256)).astype(np.int8).astype(int4)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=halves(512, 4))


def test_a_compressed_weight_is_counted_compressed(tmp_path: Path) -> None:
    cost = cost_of(tmp_path, lambda x: times(x, compressed_table()), x=("float16", (1, 256)))
    assert cost.weight_bytes == 512 * 256 // 2 + 512 * 4 * 2


def test_of_a_compressed_table_the_rows_of_its_parts_are_counted(tmp_path: Path) -> None:
    rows, columns = (
        cost_of(
            tmp_path / str(axis),
            lambda ids, axis=axis: mb.gather(x=compressed_table(), indices=ids, axis=axis),
            ids=IDS,
        )
        for axis in (0, 1)
    )
    assert rows.weight_bytes == 3 * (256 // 2 + 4 * 2)
    assert columns.weight_bytes == 512 * 256 // 2 + 512 * 4 * 2


def test_of_a_palette_the_rows_of_the_indices_are_counted_and_no_more_entries_than_those_of_their_groups(
    tmp_path: Path,
) -> None:
    indices = generator.integers(0, 16, (512, 256)).astype(np.uint8).astype(types.np_uint4_dtype)

    def build(ids: Any) -> Any:
        return mb.gather(x=mb.constexpr_lut_to_dense(indices=indices, lut=halves(4, 1, 16, 1)), indices=ids, axis=0)

    assert cost_of(tmp_path, build, ids=IDS).weight_bytes == 3 * 256 // 2 + 3 * 16 * 2


def test_numbers_within_the_program_are_no_weights(tmp_path: Path) -> None:
    assert cost_of(tmp_path, lambda x: mb.mul(x=x, y=np.float16(2)), x=X).weight_bytes == 0


# --- states -----------------------------------------------------------------------------------------------------------


STATE = {"cache": ("float16", (4, 10, 8))}
WHOLE = 4 * 10 * 8


def update(state: Any, new: Any, layer: int) -> Any:
    """Write `new` (1, 1, 8) into row 3 of a layer."""
    return mb.slice_update(x=state, update=new, begin=[layer, 3, 0], end=[layer + 1, 4, 8])


def read_a_layer(cache: Any, x: Any) -> Any:
    return mb.add(x=mb.slice_by_index(x=mb.read_state(input=cache), begin=[1, 0, 0], end=[2, 10, 8]), y=x)


def write_and_read_a_layer(cache: Any, x: Any) -> Any:
    mb.coreml_update_state(state=cache, value=update(mb.read_state(input=cache), x, 1))
    return read_a_layer(cache, x)


def write_two_layers_and_read_all(cache: Any, x: Any) -> Any:
    first = mb.coreml_update_state(state=cache, value=update(mb.read_state(input=cache), x, 1))
    second = mb.coreml_update_state(state=cache, value=update(first, x, 2))
    return mb.add(x=mb.reshape(x=second, shape=[2, 20, 8]), y=x)


def replace_all(cache: Any, x: Any) -> Any:
    mb.coreml_update_state(state=cache, value=mb.add(x=mb.read_state(input=cache), y=x))
    return mb.identity(x=x)


STATES: dict[str, tuple[Callable[..., Any], int]] = {
    "a slice is read": (read_a_layer, 10 * 8),
    "an update writes what is new": (write_and_read_a_layer, 8 + 10 * 8),
    "each update counts, a view does not": (write_two_layers_and_read_all, 8 + 8 + WHOLE),
    "a computed state is read and written whole": (replace_all, 2 * WHOLE),
}


@pytest.mark.parametrize("name", STATES)
def test_states_count_as_far_as_they_are_touched(name: str, tmp_path: Path) -> None:
    build, elements = STATES[name]
    cost = cost_of(tmp_path, build, STATE, x=("float16", (1, 1, 8)))
    assert cost.state_bytes == 2 * elements
    assert cost.weight_bytes == 0


# --- functions --------------------------------------------------------------------------------------------------------


def test_each_function_has_a_cost_of_its_own(tmp_path: Path) -> None:
    paths = [
        write_package(
            tmp_path / f"{rows}.mlpackage",
            lambda x: mb.relu(x=times(x, TABLE)),
            {"x": ("float16", (rows, 64))},
        )
        for rows in (1, 5)
    ]
    costs = function_costs(write_two_functions(tmp_path / "two.mlpackage", *paths))
    counts = {"matmul": 1, "relu": 1}
    flops = 100 * (2 * 64 + 1)
    dense, padded = 2 * 2 * 100, 2 * 256  # a hundred halves are four lanes
    assert costs == {
        "first": Cost(flops, 12800, 0, counts, dense, padded),
        "second": Cost(5 * flops, 12800, 0, counts, 5 * dense, 5 * padded),
    }


RESULTS: dict[str, tuple[Callable[[Any], Any], int, int]] = {
    "a last axis of one is a lane": (lambda x: mb.transpose(x=x, perm=[0, 1, 3, 2]), 2 * 96, 64 * 96),
    "a whole lane is as it is": (lambda x: mb.relu(x=mb.reshape(x=x, shape=[3, 32])), 2 * 2 * 96, 2 * 2 * 96),
    "one more value is one more lane": (lambda x: mb.slice_by_size(x=x, begin=[0] * 4, size=[1, 1, 1, 33]), 66, 128),
    "float32 fills it sooner": (lambda x: mb.cast(x=x, dtype="fp32"), 4 * 96, 64 * 6),
    "a scalar is a lane": (lambda x: mb.reduce_sum(x=x, keep_dims=False), 2, 64),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_counted_dense_and_in_lanes(name: str, tmp_path: Path) -> None:
    build, dense, padded = RESULTS[name]
    cost = cost_of(tmp_path, build, x=("float16", (1, 1, 1, 96)))
    assert (cost.result_bytes, cost.padded_bytes) == (dense, padded)


def test_a_state_is_no_result(tmp_path: Path) -> None:
    """It is read and updated in place; what is cut from it is one, 80 values in rows of 8, as is a sum of that."""
    cost = cost_of(tmp_path, write_and_read_a_layer, STATE, x=("float16", (1, 1, 8)))
    assert (cost.result_bytes, cost.padded_bytes) == (2 * 2 * 80, 2 * 10 * 64)


def test_a_size_that_only_the_run_decides_is_refused(tmp_path: Path) -> None:
    path = write_package(
        tmp_path / "open.mlpackage",
        lambda x: mb.relu(x=mb.cast(x=mb.non_zero(x=x), dtype="fp16"), name="open"),
        {"x": ("float16", (3, 4))},
    )
    with pytest.raises(EvaluationError) as error:
        function_costs(path)
    assert str(error.value) == "relu open: a size that is only known at run time cannot be counted"
