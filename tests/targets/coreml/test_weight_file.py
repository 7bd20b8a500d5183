"""weight.bin is, byte for byte, what coremltools' own writer makes of the same tensors."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from coreai_recipes.storage.base import Storage
from coreai_recipes.storage.compression import FLOAT16
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.storage.row_blocks import RowBlock
from coreai_recipes.targets.coreml.weight_file import write_weights

Arrays = dict[str, NDArray[np.float16]]
INT8 = Integers(8)


def random_arrays(*shapes: tuple[int, ...]) -> Arrays:
    generator = np.random.default_rng(0)
    return {f"w{i}": generator.standard_normal(shape).astype(np.float16) for i, shape in enumerate(shapes)}


def layout_of(arrays: Arrays) -> WeightLayout:
    layout = WeightLayout()
    for name, array in arrays.items():
        layout.place(name, array.shape)
    return layout


def write(path: Path, layout: WeightLayout, blocks: dict[str, Iterable[NDArray[np.float16]]]) -> tuple[str, list[int]]:
    """The digest that the writer gives, and the size of each block that it told of."""
    encoded = {name: ((0, block) for block in of_one) for name, of_one in blocks.items()}
    writing, sizes = write_weights(path, layout, encoded), []
    while True:
        try:
            sizes.append(next(writing)[1])
        except StopIteration as end:
            return str(end.value), sizes


def written_by_coremltools(path: Path, arrays: Arrays) -> list[int]:
    """The offsets that coremltools' writer gives."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    writer = _BlobStorageWriter(str(path))
    return [writer.write_fp16_data(array.view(np.uint16).ravel()) for array in arrays.values()]


def test_bytes_and_offsets_are_those_of_coremltools(tmp_path: Path) -> None:
    arrays = random_arrays((1, 48, 1, 1), (131, 48), (3,), (64, 32, 1, 1), (1,), (32,), (7, 5, 1, 1))
    layout = layout_of(arrays)
    write(tmp_path / "ours", layout, {name: [array] for name, array in arrays.items()})
    offsets = [blob.offset for placed in layout.placed.values() for blob in placed.blobs]
    assert offsets == written_by_coremltools(tmp_path / "theirs", arrays)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_int8_is_its_data_and_then_its_scales_as_coremltools_writes_them(tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    weight = torch.randn(131, 48, generator=torch.Generator().manual_seed(0))
    layout, shape = WeightLayout(), (144, 48, 1, 1)  # as a head whose rows are filled up
    blobs = layout.place("w", shape, INT8).blobs
    blocks = (weight[i : i + 7] for i in range(0, 131, 7))
    *_, _ = write_weights(tmp_path / "ours", layout, {"w": INT8.encode(blocks, shape, "w")})
    exact = weight.abs().amax(1).numpy() / np.float32(127)
    scales = np.ones(144, np.float16)
    scales[:131] = np.where(
        exact.astype(np.float16) < exact, np.nextafter(exact.astype(np.float16), np.float16(9)), exact
    )
    data = np.zeros(shape[:2], np.int8)
    data[:131] = np.rint(weight.numpy() / scales[:131, None].astype(np.float32))
    writer = _BlobStorageWriter(str(tmp_path / "theirs"))
    offsets = [writer.write_int8_data(data.ravel()), writer.write_fp16_data(scales.view(np.uint16))]
    del writer
    assert [blob.offset for blob in blobs] == offsets
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_parts_that_do_not_come_are_refused(tmp_path: Path) -> None:
    layout = WeightLayout()
    layout.place("w", (5, 2), INT8)
    with pytest.raises(RuntimeError, match="w: 0 bytes came, 10 were laid out"):
        list(write_weights(tmp_path / "ours", layout, {"w": [(0, np.zeros((5, 2), np.int8))]}))
    values = [(0, np.zeros((5, 2), np.int8)), (1, np.zeros(5, np.float16)), (2, np.zeros(1, np.float16))]
    with pytest.raises(RuntimeError, match="w: more came than was laid out"):
        list(write_weights(tmp_path / "ours", layout, {"w": values}))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=6), st.integers(1, 11))
def test_blocks_of_any_size_give_the_bytes_of_coremltools(
    tmp_path: Path, shapes: list[tuple[int, int]], rows: int
) -> None:
    arrays = random_arrays(*shapes)
    blocks = {name: [a[i : i + rows] for i in range(0, len(a), rows)] for name, a in arrays.items()}
    _, sizes = write(tmp_path / "ours", layout_of(arrays), blocks)
    written_by_coremltools(tmp_path / "theirs", arrays)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sizes == [block.nbytes for name in arrays for block in blocks[name]]


def test_a_block_is_written_before_the_next_is_asked_for(tmp_path: Path) -> None:
    """All blocks of a checkpoint share one buffer."""
    (array,) = random_arrays((6, 4)).values()
    buffer = np.empty((2, 4), np.float16)

    def blocks() -> Iterable[NDArray[np.float16]]:
        for start in (0, 2, 4):
            buffer[:] = array[start : start + 2]
            yield buffer
            buffer[:] = 0

    layout = layout_of({"w0": array})
    write(tmp_path / "ours", layout, {"w0": blocks()})
    written = (tmp_path / "ours").read_bytes()
    assert written[layout.placed["w0"].blobs[0].offset + 64 :][: array.nbytes] == array.tobytes()


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    arrays = random_arrays((5, 7), (64,))
    digest, _ = write(tmp_path / "ours", layout_of(arrays), {name: [array] for name, array in arrays.items()})
    assert digest == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()


def test_a_tensor_in_two_shapes_is_one_blob() -> None:
    layout = WeightLayout()
    placed = layout.place("embedding.weight", (131, 48))
    end = layout.end
    assert layout.place("embedding.weight", (131, 48, 1, 1)) == placed
    assert layout.end == end
    assert list(layout.placed) == ["embedding.weight"]


def test_a_tensor_in_two_sizes_is_refused() -> None:
    layout = WeightLayout()
    layout.place("embedding.weight", (131, 48))
    with pytest.raises(RuntimeError, match=r"embedding.weight is used as \(131, 48\) and as \(130, 48\)"):
        layout.place("embedding.weight", (130, 48))


@pytest.mark.parametrize("rows", [4, 6])
def test_a_tensor_of_another_size_than_was_laid_out_is_refused(tmp_path: Path, rows: int) -> None:
    layout = WeightLayout()
    layout.place("w", (5, 2))
    with pytest.raises(RuntimeError, match=f"w: {rows * 4} bytes came, 20 were laid out"):
        write(tmp_path / "ours", layout, {"w": [np.zeros((rows, 2), np.float16)]})


def test_offsets_stand_before_any_weight_is_read() -> None:
    layout = WeightLayout()
    found = [layout.place(name, (33,)).blobs[0].offset for name in "abc"]
    assert found == [64, 64 + 64 + 128, 64 + 2 * (64 + 128)]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_rows_with_a_record_of_their_own_are_read_by_coremltools_and_counted_by_nobody(
    bits: int, tmp_path: Path
) -> None:
    from coremltools.libmilstoragepython import _BlobStorageReader

    arrays, rows = random_arrays((192, 64), (5,)), RowBlock("w0", 64, 192)
    storage: Storage = FLOAT16 if bits == 16 else Integers(bits)
    shapes = {name: array.shape for name, array in arrays.items()}
    layout, plain = WeightLayout(), WeightLayout()
    for each in (layout, plain):
        for name, shape in shapes.items():
            each.place(name, shape, storage if name == "w0" else FLOAT16)
    layout.place_block(rows)
    for name, each in (("ours", layout), ("plain", plain)):
        blocks = {n: each.placed[n].storage.encode([torch.from_numpy(a)], shapes[n], n) for n, a in arrays.items()}
        *_, _ = write_weights(tmp_path / name, each, blocks)
    ours, before = (tmp_path / "ours").read_bytes(), (tmp_path / "plain").read_bytes()
    assert ours.startswith(before)
    assert layout.bytes == plain.bytes
    reader, read = _BlobStorageReader(str(tmp_path / "ours")), {16: "fp16", 8: "int8", 4: "int4"}[bits]
    whole, block = layout.placed["w0"].blobs, layout.place(rows.name, (128, 64, 1, 1)).blobs
    found = [np.asarray(getattr(reader, f"read_{read}_data")(blobs[0].offset)) for blobs in (whole, block)]
    assert np.array_equal(found[0][-128 * 64 :], found[1])
    if bits < 16:
        scales = [np.asarray(reader.read_fp16_data(blobs[1].offset)) for blobs in (whole, block)]
        assert np.array_equal(scales[0][64:], scales[1])
    assert len(ours) - len(before) < 64 * (len(block) + 1)
