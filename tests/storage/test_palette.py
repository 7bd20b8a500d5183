"""Grouped palettes: how near the best one they come, what the packed numbers are, and that others read the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.clustering import choose_entries, nearest_entries
from coreai_recipes.storage.kernels import kernel
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.storage.packing import pack_bits, unpack_bits
from coreai_recipes.storage.palette import Palette
from coreai_recipes.storage.reading import stored_weights
from coreai_recipes.targets.coreml.weight_file import write_weights

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
GENERATOR = np.random.default_rng(0)
LINES = {
    "normal": GENERATOR.standard_normal((2, 600)) * 0.03,
    "with outliers": GENERATOR.standard_normal((2, 600)) * np.where(GENERATOR.random((2, 600)) < 0.01, 0.5, 0.03),
    "of a 4-bit grid": GENERATOR.integers(-8, 8, (2, 600)) * GENERATOR.choice([0.01, 0.013], (2, 600)),
    "with one of 60,000": np.concatenate((GENERATOR.standard_normal((2, 599)) * 0.03, np.full((2, 1), 6e4)), 1),
}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1


def squared_error(weights: NDArray[np.float16], entries: NDArray[np.float16]) -> NDArray[np.float64]:
    taken = np.take_along_axis(entries.astype(np.float64), nearest_entries(weights, entries).astype(int), 1)
    return np.asarray(((weights.astype(np.float64) - taken) ** 2).sum(1))


def least_error(line: NDArray[np.float16], entries: int, importance: NDArray[np.float32] | None = None) -> float:
    """By the whole programme over all weights, its entries not rounded to float16."""
    order, n = np.argsort(line), len(line)
    x, m = line.astype(np.float64)[order], (np.ones(n) if importance is None else importance.astype(np.float64))[order]
    masses, sums, squares = (np.concatenate(([0.0], np.cumsum(values))) for values in (m, m * x, m * x * x))
    i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    total, mass = sums[j] - sums[i], np.maximum(masses[j] - masses[i], 1e-30)
    cost = np.where(j > i, squares[j] - squares[i] - total * total / mass, np.where(i == j, 0, np.inf))
    best = np.where(np.arange(n + 1) == 0, 0.0, np.inf)
    for _ in range(entries):
        best = np.min(best[:, None] + cost, 0)
    return float(best[n])


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(("bits", "above"), [(1, 1e-4), (2, 1e-4), (3, 1e-3), (4, 1e-3), (6, 1e-2)])
def test_the_squared_error_is_near_the_least_there_is(name: str, bits: int, above: float) -> None:
    weights = LINES[name].astype(np.float16)
    entries = choose_entries(weights, 1 << bits)
    for line, error in zip(weights, squared_error(weights, entries), strict=True):
        # entries are float16, which a weight of 6e4 and a cluster of one value are too
        assert error <= least_error(line, 1 << bits) * (1 + above) + len(line) * (0.03 * 2**-11) ** 2


@pytest.mark.parametrize("bits", [2, 4])
def test_errors_count_as_much_as_their_column_is_important(bits: int) -> None:
    weights = LINES["with outliers"].astype(np.float16)
    importance = (GENERATOR.standard_normal((2, 120)) ** 4).astype(np.float32)
    importance[1, 7] = 0
    entries = choose_entries(weights, 1 << bits, importance)
    taken = np.take_along_axis(entries.astype(np.float64), nearest_entries(weights, entries).astype(int), 1)
    whole = np.tile(importance, 5)  # five rows of 120 in a group
    for line, found, weight in zip(weights, taken, whole, strict=True):
        error = float((weight * (line - found) ** 2).sum())
        assert error <= least_error(line, 1 << bits, weight) * 1.001 + weight.sum() * (0.03 * 2**-11) ** 2
    alone = choose_entries(weights[:1], 1 << bits, importance[0])
    assert np.array_equal(alone[0], entries[0])
    assert np.array_equal(choose_entries(weights, 16, np.zeros(120, np.float32)), choose_entries(weights, 16))


def test_any_number_of_threads_finds_the_same_palettes(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (GENERATOR.standard_normal((7, 300)) * 0.1).astype(np.float16)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        entries = choose_entries(weights, 8, np.arange(1, 301, dtype=np.float32))
        found.append((entries.tobytes(), nearest_entries(weights, entries).tobytes()))
    assert found[0] == found[1]


def test_kernels_are_compiled_where_nothing_can_be_kept() -> None:
    """An installation that cannot be written to, of a user without a home: numba raises for want of a place."""
    space: dict[str, Any] = {}
    exec("def twice(number): return number + number", space)
    assert kernel(space["twice"])(21) == 42


def test_few_values_are_kept_as_they_are() -> None:
    values = np.float16([-60000, -0.25, 0, 6e-8, 0.5, 65504])
    weights = np.stack((np.resize(values, 200), np.zeros(200, np.float16), np.full(200, -3, np.float16)))
    entries = choose_entries(weights, 16)
    assert np.array_equal(np.take_along_axis(entries, nearest_entries(weights, entries).astype(int), 1), weights)
    assert (np.diff(entries.astype(np.float32), axis=1) >= 0).all()
    ends = np.concatenate((GENERATOR.standard_normal((1, 998)), [[-6e4, 6e4]]), 1).astype(np.float16)
    assert choose_entries(ends, 4)[0, [0, 3]].tolist() == [-60000, 60000]
    tiny = np.arange(1, 400, dtype=np.uint16).view(np.float16)[None]  # subnormal
    assert (squared_error(tiny, choose_entries(tiny, 16)) < 1.01 * least_error(tiny[0], 16) + 399 * 2.0**-52).all()
    few = choose_entries(np.float16([[0.5, -0.5, -0.0]]), 8)
    assert few.tolist() == [[-0.5, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]


def test_a_weight_between_two_entries_takes_the_lower() -> None:
    assert nearest_entries(np.float16([[0.5, 0.75, -9, 9]]), np.float16([[0, 1, 2, 4]])).tolist() == [[0, 1, 0, 3]]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape", [(32, 24, 1, 1), (3, 16, 10)])
def test_coremltools_makes_the_same_weights_of_the_parts(bits: int, shape: tuple[int, ...]) -> None:
    weight, palette = random(*shape), Palette(bits, 16)
    found = list(palette.encode([weight], shape, "w"))
    packed, entries = np.concatenate([values for part, values in found if part == 0]), found[-1][1]
    indices_part, lut_part = palette.parts(shape)
    indices = unpack_bits(packed, bits, weight.numel()).reshape(shape)
    stored = np.uint8 if bits == 8 else types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
    theirs = constexpr_lut_to_dense.decompress(indices.astype(stored), entries.reshape(lut_part.shape), None)
    ours = palette.as_stored(weight, "w")
    assert torch.equal(ours, torch.from_numpy(np.asarray(theirs, np.float32)).reshape(shape))
    assert (packed.nbytes, entries.nbytes) == (indices_part.bytes, lut_part.bytes)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_numbers_lie_as_coremltools_writes_them(bits: int, tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    shape, palette = (16, 5), Palette(bits, 16)
    weight = random(*shape)
    layout = WeightLayout()
    layout.place("w", shape, palette)
    *_, _ = write_weights(tmp_path / "ours", layout, {"w": palette.encode([weight], shape, "w")})
    entries = choose_entries(weight.half().numpy().reshape(1, -1), 1 << bits)
    writer = _BlobStorageWriter(str(tmp_path / "theirs"))
    getattr(writer, f"write_uint{bits}_data")(nearest_entries(weight.half().numpy().reshape(1, -1), entries).ravel())
    writer.write_fp16_data(entries.view(np.uint16).ravel())
    del writer
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_numbers_are_unpacked_as_they_were_packed() -> None:
    for bits in (1, 2, 3, 4, 6, 8):
        values = GENERATOR.integers(0, 1 << bits, 41).astype(np.uint8)
        assert np.array_equal(unpack_bits(pack_bits(values, bits), bits, 41), values)


def test_blocks_of_any_size_give_the_same_bytes_and_rows_that_are_missing_are_zeros() -> None:
    weight, palette, shape = random(50, 9), Palette(3, 16), (64, 9, 1, 1)
    whole = [values.tobytes() for _, values in palette.encode([weight], shape, "w")]
    blocks = (weight[i : i + 7] for i in range(0, 50, 7))
    assert [values.tobytes() for _, values in palette.encode(blocks, shape, "w")] == whole
    filled = palette.as_stored(torch.cat((weight, torch.zeros(14, 9))), "w")
    assert torch.equal(filled[48:], palette.as_stored(torch.cat((weight[48:], torch.zeros(14, 9))), "w"))


@pytest.mark.parametrize(("rows", "group"), [(48, 16), (72, 12), (8, 8), (13, 13), (17, 1)])
def test_a_group_that_does_not_divide_the_rows_becomes_smaller(rows: int, group: int) -> None:
    fitted = Palette(4, 16).fitted((rows, 40, 1, 1))
    assert fitted.group == group
    assert fitted.parts((rows, 40, 1, 1))[1].shape == (rows // group, 1, 1, 1, 16, 1)
    assert Palette(4, 16).fitted((5, rows, 40)).parts((5, rows, 40))[1].shape == (5, rows // group, 1, 16, 1)


def test_the_reference_is_given_back_group_by_group_in_its_own_order() -> None:
    """Rows of queries are stored in the order of the fold, and those of one palette are not those of one head."""
    recipe = load_recipe("tiny-llama", ["compress.default={kind: palettize, bits: 2, group: 16}"])
    weights = stored_weights(recipe, open_checkpoint(TINY))
    table = weights["embedding.weight"].read()
    assert torch.equal(weights["embedding.weight"].read_rows([3, 200, 511]), table[[3, 200, 511]])
    assert table[:16].unique().numel() <= 4 < table[:17].unique().numel()
    query, binding = (
        weights["layers.0.attention.q.weight"],
        open_checkpoint(TINY).read("model.layers.0.self_attn.q_proj.weight"),
    )
    assert query.read().shape == binding.shape
    assert (query.read() - binding.float()).square().mean() < 0.2 * binding.float().square().mean()
