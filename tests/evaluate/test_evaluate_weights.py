"""Weights: compressed ones against coremltools' own decompression, streamed against kept, rows against tables."""

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.defs.iOS16 import constexpr_ops as ios16
from coremltools.converters.mil.mil.ops.defs.iOS18 import compression as ios18
from mil_programs import share_equal_blobs, write_package, write_two_functions

from coreai_recipes.evaluate import EvaluationError, Program
from coreai_recipes.evaluate.decompress import DECOMPRESSIONS

generator = np.random.default_rng(0)
INT4, UINT4, UINT1, UINT2, UINT3, UINT6 = (
    getattr(types, f"np_{name}_dtype") for name in ("int4", "uint4", "uint1", "uint2", "uint3", "uint6")
)


def whole(low: int, high: int, shape: Any, kind: Any) -> Any:
    return generator.integers(low, high, shape).astype(np.int8 if low < 0 else np.uint8).astype(kind)


def halves(*shape: int) -> Any:
    return generator.standard_normal(shape).astype(np.float16)


def blockwise(data: Any, scale: Any, offset: Any = None) -> tuple[str, dict[str, Any]]:
    parameters = {"data": data, "scale": scale}
    return "constexpr_blockwise_shift_scale", parameters if offset is None else {**parameters, "offset": offset}


def palette(indices: Any, lut: Any, axis: int | None = None) -> tuple[str, dict[str, Any]]:
    parameters = {"indices": indices, "lut": lut}
    return "constexpr_lut_to_dense", parameters if axis is None else {**parameters, "vector_axis": np.int32(axis)}


MASK = whole(0, 2, (8, 12), np.uint8)
SET = int(MASK.sum())
# Each case: the operation and its constants. Every result is (8, 12) once its sparse ones are made dense.
IOS18 = {
    "int4 by block": blockwise(whole(-8, 8, (8, 12), INT4), halves(8, 3)),
    "uint4 with offset": blockwise(whole(0, 16, (8, 12), UINT4), halves(2, 3), whole(0, 16, (2, 3), UINT4)),
    "int8 by channel": blockwise(whole(-128, 128, (8, 12), np.int8), halves(8, 1)),
    "uint8 with a float offset": blockwise(whole(0, 256, (8, 12), np.uint8), halves(8, 1), halves(8, 1)),
    "int8 to float32": blockwise(whole(-128, 128, (8, 12), np.int8), halves(8, 1).astype(np.float32)),
    "palette of 2 bits": palette(whole(0, 4, (8, 12), UINT2), halves(1, 1, 4, 1)),
    "palette of 3 bits": palette(whole(0, 8, (8, 12), UINT3), halves(1, 1, 8, 1)),
    "palette of 6 bits": palette(whole(0, 64, (8, 12), UINT6), halves(1, 1, 64, 1)),
    "palettes by group of rows": palette(whole(0, 16, (8, 12), UINT4), halves(4, 1, 16, 1)),
    "palettes by group of both": palette(whole(0, 16, (8, 12), UINT4), halves(2, 3, 16, 1)),
    "vectors along rows": palette(whole(0, 4, (4, 12), UINT2), halves(2, 1, 4, 2), 0),
    "vectors along columns": palette(whole(0, 16, (8, 4), UINT4), halves(2, 1, 16, 3), 1),
    "sparse": ("constexpr_sparse_to_dense", {"nonzero_data": halves(SET), "mask": MASK.astype(UINT1)}),
    "sparse palette": (
        "constexpr_lut_to_sparse",
        {
            "indices_mask": MASK.astype(UINT1),
            "indices_nonzero_data": whole(0, 16, SET, UINT4),
            "lut": halves(2, 1, 16, 1),
        },
    ),
    "sparse vectors": (
        "constexpr_lut_to_sparse",
        {
            "indices_mask": MASK[:4].astype(UINT1),
            "indices_nonzero_data": whole(0, 16, int(MASK[:4].sum()), UINT4),
            "lut": halves(1, 1, 16, 2),
            "vector_axis": np.int32(0),
        },
    ),
    "sparse int8": (
        "constexpr_sparse_blockwise_shift_scale",
        {"data_mask": MASK.astype(UINT1), "nonzero_data": whole(-128, 128, SET, np.int8), "scale": halves(8, 1)},
    ),
    "cast": ("constexpr_cast", {"source_val": halves(8, 12), "output_dtype": "fp32"}),
}
PACKED = generator.integers(0, 256, 8 * 12 * 4 // 8).astype(np.uint8)
IOS16 = {
    "affine": (
        "constexpr_affine_dequantize",
        {
            "quantized_data": whole(0, 256, (8, 12), np.uint8),
            "zero_point": whole(0, 256, (12,), np.uint8),
            "scale": halves(12),
            "axis": np.int32(1),
        },
    ),
    "affine scalar": (
        "constexpr_affine_dequantize",
        {
            "quantized_data": whole(-128, 128, (8, 12), np.int8),
            "zero_point": np.int8(3),
            "scale": np.float16(0.1),
            "axis": np.int32(0),
        },
    ),
    "palette": ("constexpr_lut_to_dense", {"indices": PACKED, "lut": halves(16), "shape": np.uint32([8, 12])}),
    "palette of 6 bits": (
        "constexpr_lut_to_dense",
        {"indices": generator.integers(0, 256, 72).astype(np.uint8), "lut": halves(64), "shape": np.uint32([8, 12])},
    ),
    "sparse": (
        "constexpr_sparse_to_dense",
        {
            "nonzero_data": halves(SET),
            "mask": np.packbits(MASK.ravel(), bitorder="little"),
            "shape": np.uint32([8, 12]),
        },
    ),
    "cast": ("constexpr_cast", {"source_val": halves(8, 12), "output_dtype": "fp32"}),
}


def decompressed_by_coremltools(operation: str, module: Any, parameters: dict[str, Any]) -> Any:
    """What coremltools says the weight is, dense."""
    if operation == "constexpr_cast":
        return parameters["source_val"].astype(np.float32)
    given = dict(parameters)
    optional = {
        "constexpr_blockwise_shift_scale": "offset",
        "constexpr_sparse_blockwise_shift_scale": "offset",
        "constexpr_lut_to_dense": "vector_axis" if module is ios18 else None,
        "constexpr_lut_to_sparse": "vector_axis",
    }.get(operation)
    if optional:
        given.setdefault(optional, None)
    found = getattr(module, operation).decompress(**given)
    return ios18.constexpr_sparse_to_dense.decompress(found[1], found[0]) if isinstance(found, tuple) else found


def programs(tmp_path_factory: pytest.TempPathFactory, cases: Any, target: Any) -> list[Program]:
    def build(x: Any) -> list[Any]:
        outputs = []
        for operation, parameters in cases.values():
            weight = getattr(mb, operation)(**parameters)
            if isinstance(weight, tuple | list):
                weight = mb.constexpr_sparse_to_dense(nonzero_data=weight[1], mask=weight[0])
            ready = x if weight.dtype == types.fp32 else mb.cast(x=x, dtype="fp16")
            outputs.append(mb.cast(x=mb.add(x=weight, y=ready), dtype="fp32"))
        return outputs

    path = tmp_path_factory.mktemp("weights") / "compressed.mlpackage"
    write_package(path, build, {"x": ("float32", (1,))}, target=target)
    return [Program(path), Program(path, stream_weights=True)]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By opset: the outputs of the kept and the streaming program."""
    zero = {"x": torch.zeros(1)}
    return {
        name: [list(program.function()(zero).values()) for program in programs(tmp_path_factory, cases, target)]
        for name, cases, target in (("iOS18", IOS18, ct.target.iOS18), ("iOS16", IOS16, ct.target.iOS16))
    }


@pytest.mark.parametrize("opset", ["iOS16", "iOS18"])
def test_compressed_weights_are_what_coremltools_says(opset: str, compressed: Any) -> None:
    cases, module = (IOS18, ios18) if opset == "iOS18" else (IOS16, ios16)
    for index, (operation, parameters) in enumerate(cases.values()):
        expected = decompressed_by_coremltools(operation, module, parameters)
        for outputs in compressed[opset]:
            assert np.array_equal(outputs[index].numpy(), expected.astype(np.float32)), list(cases)[index]


def test_each_decompression_has_a_case() -> None:
    assert set(DECOMPRESSIONS) == {operation for operation, _ in (*IOS18.values(), *IOS16.values())}


TABLE = halves(512, 96)
TABLES = {
    "plain": None,
    "int8": blockwise(whole(-128, 128, (512, 192), np.int8), halves(512, 1)),
    "int4 by block": blockwise(whole(-8, 8, (512, 512), INT4), halves(128, 8), whole(-8, 8, (128, 8), INT4)),
    "palette": palette(whole(0, 16, (512, 512), UINT4), halves(64, 1, 16, 1)),
    "vectors": palette(whole(0, 16, (512, 512), UINT4), halves(64, 1, 16, 2), 1),
    "vectors along rows": palette(whole(0, 16, (512, 512), UINT4), halves(64, 1, 16, 2), 0),
    "odd bits": palette(whole(0, 8, (512, 511), UINT3), halves(1, 1, 8, 1)),
}


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_rows_of_a_large_table_are_the_rows_of_the_whole_table(tmp_path: Path, name: str, streams: bool) -> None:
    def table() -> Any:
        if TABLES[name] is None:
            return mb.const(val=TABLE)
        operation, parameters = TABLES[name]
        return getattr(mb, operation)(**parameters)

    expected = TABLE if TABLES[name] is None else decompressed_by_coremltools(TABLES[name][0], ios18, TABLES[name][1])
    path = write_package(
        tmp_path / "table.mlpackage",
        lambda ids: mb.gather(x=table(), indices=ids, axis=0),
        {"ids": ("int32", (1, 5))},
    )
    program = Program(path, stream_weights=streams)
    ids = torch.tensor([[0, 511, 3, 77, 3]])
    rows = next(iter(program.function()({"ids": ids}).values()))
    assert np.array_equal(rows.numpy(), expected[ids.numpy()].astype(np.float32))
    by_row = name not in ("vectors along rows", "odd bits")
    assert len(program._store._kept) == (0 if by_row or streams else 1)


def head_and_embedding(table: Any, compress: bool) -> Any:
    """A tied table, (V, C) to the embedding and (V, C, 1, 1) to the head."""

    def build(ids: Any) -> Any:
        if compress:
            scale = halves(512, 1)
            data = whole(-128, 128, (512, 192), np.int8)
            embedding = mb.constexpr_blockwise_shift_scale(data=data, scale=scale)
            head = mb.constexpr_blockwise_shift_scale(data=data[..., None, None], scale=scale[..., None, None])
        else:
            embedding, head = mb.const(val=table), mb.const(val=table[..., None, None])
        x = mb.gather(x=embedding, indices=ids, axis=0)
        x = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 1]), axes=[2])
        both = mb.matmul(x=embedding, y=mb.squeeze(x=x, axes=[0, 2]))
        return [mb.conv(x=x, weight=head, name="logits"), mb.identity(x=both, name="both")]

    return build


def test_two_functions_and_both_ends_of_a_tied_table_share_one_copy(tmp_path: Path) -> None:
    build = head_and_embedding(TABLE, compress=False)
    paths = [write_package(tmp_path / f"{count}.mlpackage", build, {"ids": ("int32", (1, count))}) for count in (1, 3)]
    program = Program(share_equal_blobs(write_two_functions(tmp_path / "two.mlpackage", *paths)))
    assert program.functions == ("first", "second")
    assert program.default_function == "first"
    outputs = program.function("second")({"ids": [[5, 6, 7]]})
    expected = torch.from_numpy(TABLE).float() @ torch.from_numpy(TABLE[[5, 6, 7]]).float().T
    torch.testing.assert_close(outputs["logits"][0, :, 0], expected, rtol=1e-5, atol=1e-4)
    one = program.function("first")({"ids": [[6]]})
    torch.testing.assert_close(one["logits"][0, :, 0, 0], expected[:, 1], rtol=1e-5, atol=1e-4)
    assert [tensor.numel() for tensor in program._store._kept.values() if tensor.numel() > 100] == [TABLE.size]
    assert program.function("first") is program.function()


def test_a_compressed_tied_table_is_kept_once(tmp_path: Path) -> None:
    path = write_package(
        tmp_path / "tied.mlpackage", head_and_embedding(TABLE, compress=True), {"ids": ("int32", (1, 2))}
    )
    program = Program(share_equal_blobs(path))
    outputs = program.function()({"ids": [[5, 6]]})
    torch.testing.assert_close(outputs["logits"][0, :, 0], outputs["both"], rtol=1e-5, atol=1e-4)
    assert [tensor.numel() for tensor in program._store._kept.values() if tensor.numel() > 100] == [512 * 192]


def test_streamed_weights_give_the_same_and_are_not_kept(tmp_path: Path) -> None:
    weights = [halves(256, 256, 1, 1) * np.float16(0.1) for _ in range(3)]

    def build(x: Any) -> Any:
        for weight in weights:
            x = mb.relu(x=mb.conv(x=x, weight=weight))
        return x

    path = write_package(tmp_path / "deep.mlpackage", build, {"x": ("float16", (1, 256, 1, 4))})
    x = {"x": torch.randn(1, 256, 1, 4, generator=torch.Generator().manual_seed(0))}
    for precision in ("float32", "rounded", "strict"):
        kept, streamed = Program(path, precision), Program(path, precision, stream_weights=True)  # type: ignore[arg-type]
        for ours, theirs in zip(streamed.function()(x).values(), kept.function()(x).values(), strict=True):
            assert torch.equal(ours, theirs)
        assert sum(tensor.numel() for tensor in kept._store._kept.values()) >= 3 * 256 * 256
        assert sum(tensor.numel() for tensor in streamed._store._kept.values()) == 0


def test_all_precisions_share_what_was_read_and_answer_as_if_each_had_read_it(tmp_path: Path) -> None:
    weight = halves(256, 256, 1, 1) * np.float16(0.1)
    path = write_package(
        tmp_path / "shared.mlpackage", lambda x: mb.conv(x=x, weight=weight), {"x": ("float16", (1, 256, 1, 1))}
    )
    program, x = Program(path), {"x": torch.randn(1, 256, 1, 1, generator=torch.Generator().manual_seed(0))}
    program.function()
    for precision in ("rounded", "engine", "strict"):
        programs = program.at(precision), Program(path, precision)  # type: ignore[arg-type]
        (shared,), (alone,) = (each.function()(x).values() for each in programs)
        assert torch.equal(shared, alone)
    # as float32, as stored for both whose sums are float32, and in blocks
    assert [tensor.dtype for tensor in program._store._kept.values() if tensor.numel() == 256 * 256] == [
        torch.float32,
        torch.float16,
        torch.float16,
    ]
    with pytest.raises(EvaluationError, match="there is no habit 'x'"):
        program.at("engine", ["x"])


@pytest.mark.parametrize("precision", ["float32", "strict"])
def test_a_streamed_head_is_multiplied_some_rows_at_a_time(tmp_path: Path, precision: Any) -> None:
    """A head of a large vocabulary would otherwise be by far the largest thing in memory."""
    head, bias = halves(5000, 1024), halves(5000)

    def build(x: Any) -> Any:
        column = mb.reshape(x=x, shape=[1, 1024, 1, 1])
        conv = mb.conv(x=column, weight=head[..., None, None], bias=bias)
        return [mb.linear(x=x, weight=head, bias=bias), mb.reshape(x=conv, shape=[1, 5000])]

    path = write_package(tmp_path / "head.mlpackage", build, {"x": ("float16", (1, 1024))})
    x = {"x": torch.randn(1, 1024, generator=torch.Generator().manual_seed(0))}
    streamed, kept = Program(path, precision, stream_weights=True).function(), Program(path, precision).function()
    assert all(len(step.operands) <= 2 for step in streamed._prepared.steps)
    for ours, theirs in zip(streamed(x).values(), kept(x).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-1 if precision == "strict" else 1e-4)


@pytest.mark.parametrize("precision", ["float32", "strict"])
@pytest.mark.parametrize(("count", "transposes"), [(1, False), (5, False), (1, True), (5, True)])
def test_a_streamed_stack_of_matrices_is_multiplied_some_at_a_time(
    tmp_path: Path, precision: Any, count: int, transposes: bool
) -> None:
    """A layer's experts as float32 would otherwise be in memory at once: 3 GB for Gemma 4's 26B."""
    stack = halves(5, 1200, 1024)
    rows, columns = (1024, 1200) if transposes else (1200, 1024)

    def build(x: Any) -> Any:
        return mb.matmul(x=stack, y=x, transpose_x=transposes, transpose_y=transposes)

    shape = (count, 3, columns) if transposes else (count, columns, 3)
    path = write_package(tmp_path / "stack.mlpackage", build, {"x": ("float16", shape)})
    x = {"x": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    streamed, kept = Program(path, precision, stream_weights=True).function(), Program(path, precision).function()
    assert [len(step.operands) for step in streamed._prepared.steps] == [1]
    (ours,), (theirs,) = streamed(x).values(), kept(x).values()
    assert ours.shape == (5, rows, 3)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-1 if precision == "strict" else 1e-4)
