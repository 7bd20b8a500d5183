"""Integers: how near they come, what they never do, and that others who read them get the same numbers."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale
from torch import Tensor

from coreai_recipes.errors import CheckpointError
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.targets.coreml.weight_file import write_weights

INT8 = Integers(8)
READ = {"float16": "fp16"}  # in coremltools' words


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def encoded(weight: Tensor, shape: tuple[int, ...] | None = None, form: Integers = INT8) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[] for _ in form.parts((1, 64))]
    for part, values in form.encode([weight], shape or tuple(weight.shape), "w"):
        parts[part].append(values.reshape(-1).copy())
    return [np.concatenate(values) for values in parts]


@pytest.mark.parametrize("largest", [3e-7, 1e-5, 1e-3, 0.2, 40.0, 65504.0])
def test_no_weight_is_further_off_than_half_a_step_and_the_largest_is_not_cut_off(largest: float) -> None:
    """A scale that is rounded down cuts the largest off: by a third where scales are float16's smallest."""
    weight = random(64, 200)
    weight = weight / weight.abs().amax(1, keepdim=True) * largest
    step = torch.from_numpy(encoded(weight)[1]).float()[:, None]
    ours = INT8.as_stored(weight, "w")
    rounding = ours.abs() * 2**-11 + 2.0**-25  # of the product to float16
    assert ((ours - weight).abs() <= step / 2 * 1.0001 + rounding).all() or largest == 65504.0
    assert ((ours - weight).abs().amax(1) <= 33 + step[:, 0]).all()
    assert ours.isfinite().all()


def test_a_row_of_zeros_and_one_of_a_single_value_are_exact() -> None:
    weight = torch.stack((torch.zeros(32), torch.full((32,), 0.5), torch.full((32,), -127 * 2.0**-7)))
    assert torch.equal(INT8.as_stored(weight, "w"), weight)
    assert encoded(weight)[1].tolist() == [1, 0.5, 2.0**-7]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("bits", [4, 8])
def test_coremltools_makes_the_same_weights_of_the_parts(
    bits: int, block: int | None, symmetric: bool, tmp_path: Path
) -> None:
    from coremltools.libmilstoragepython import _BlobStorageReader

    weight, form, shape = random(24, 40) * 0.1, Integers(bits, block, symmetric), (24, 40)
    weight[3] *= 1e-5
    weight[5, 7], weight[5, 30], weight[6, 2], weight[7] = 60000.0, -65504.0, 65504.0, weight[7].abs()
    weight[8], weight[9] = 0.0, -0.0
    layout = WeightLayout()
    blobs = layout.place("w", shape, form).blobs
    *_, _ = write_weights(tmp_path / "w", layout, {"w": form.encode([weight], shape, "w")})
    reader = _BlobStorageReader(str(tmp_path / "w"))
    read = [np.array(getattr(reader, f"read_{READ.get(b.part.dtype, b.part.dtype)}_data")(b.offset)) for b in blobs]
    parts = [values.reshape(blob.part.shape) for values, blob in zip(read, blobs, strict=True)]
    parts[1] = parts[1].view(np.float16)
    theirs = constexpr_blockwise_shift_scale.decompress(*parts, *([None] if symmetric else []))
    ours = form.as_stored(weight, "w")
    assert torch.equal(ours, torch.from_numpy(theirs.astype(np.float32)))
    assert ours.isfinite().all()
    assert not ours[8:10].any()
    assert sum(blob.part.bytes for blob in blobs) == form.bytes(shape)


@pytest.mark.parametrize("form", [Integers(4), Integers(4, 32), Integers(4, 32, symmetric=False)])
def test_four_bits_take_the_scale_that_costs_least(form: Integers) -> None:
    """The scale of the largest weight spends its levels on what hardly occurs."""
    weight = random(64, 256) * 0.02
    importance = (torch.rand(256, generator=torch.Generator().manual_seed(1)) ** 8).numpy()
    cut = ((form.as_stored(weight, "w") - weight) ** 2).mean()
    low, high = (
        weight.numpy().reshape(64, -1, form.block or 256).min(-1),
        weight.reshape(64, -1, form.block or 256).amax(-1),
    )
    peak = torch.maximum(high, torch.from_numpy(-low)) / 7 if form.symmetric else (high - torch.from_numpy(low)) / 15
    scale = peak.repeat_interleave(form.block or 256, 1)
    whole = ((torch.round(weight / scale) * scale - weight) ** 2).mean()
    assert cut < whole * (0.8 if form.block is None else 0.99)

    def error(data: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> float:
        size = 256 // scale.shape[1]
        signed = np.where(data > 7, data.astype(np.float32) - 16, data) if form.symmetric else data
        found = (signed - offset.repeat(size, 1).astype(np.float32)) * scale.repeat(size, 1).astype(np.float32)
        return float((importance * (found - weight.numpy()) ** 2).sum())

    assert error(*form.quantize(weight.numpy(), importance)) < 0.99 * error(*form.quantize(weight.numpy()))


@pytest.mark.parametrize(
    ("width", "block"), [(96, 32), (176, 22), (80, 20), (32, None), (37, None), (34, 17), (46, 23)]
)
def test_a_block_that_does_not_divide_a_row_becomes_a_smaller_one_or_the_row(width: int, block: int | None) -> None:
    for shape in ((5, width, 1, 1), (5, width), (3, 5, width)):
        fitted = Integers(4, 32).fitted(shape)
        assert fitted.block == block
        assert fitted.parts(shape)[1].shape == tuple(width // (block or width) if n == width else n for n in shape)


def test_rows_that_are_filled_up_are_zeros() -> None:
    data, scale = encoded(random(5, 8), (7, 8, 1, 1))
    found = INT8.decode([data, scale], (7, 8, 1, 1))
    assert [part.shape for part in INT8.parts((7, 8, 1, 1))] == [(7, 8, 1, 1), (7, 1, 1, 1)]
    assert not found[5:].any()
    assert found[:5].any(1).all()


def test_experts_have_a_scale_for_each_row_of_each() -> None:
    weight = random(3, 10, 6)
    weight[1] *= 100
    assert [part.shape for part in INT8.parts((3, 10, 6))] == [(3, 10, 6), (3, 10, 1)]
    assert torch.equal(INT8.as_stored(weight, "w")[1], INT8.as_stored(weight[1], "w"))


def test_blocks_of_any_size_give_the_same_bytes_and_are_not_kept() -> None:
    weight = random(50, 16)

    def blocks() -> Iterator[Tensor]:
        for start in range(0, 50, 7):
            block = weight[start : start + 7].clone()
            yield block
            block.fill_(torch.nan)  # a checkpoint reads the next into the same memory

    for form in (INT8, Integers(4, 8, symmetric=False)):
        found: list[list[np.ndarray]] = [[], [], []]
        for part, values in form.encode(blocks(), (50, 16), "w"):
            found[part].append(values.reshape(-1).copy())
        assert [np.concatenate(v).tolist() for v in found if v] == [p.tolist() for p in encoded(weight, form=form)]


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "holds NaN"), (70000.0, "holds 70000, and float16 ends")])
def test_what_float16_cannot_hold_is_refused_by_name(value: float, said: str) -> None:
    weight = random(4, 4)
    weight[2, 1] = value
    with pytest.raises(CheckpointError, match=f"^model.up.weight {said}"):
        INT8.as_stored(weight, "model.up.weight")


E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])


@pytest.mark.parametrize(
    ("form", "numbers", "offsets"),
    [
        (Integers(4, 32, symmetric=False), range(16), range(16)),  # of GPTQ and AWQ
        (Integers(4, 32), range(-8, 8), [0]),  # of Q4_0
        (Integers(8, 32), range(-128, 128), [0]),  # of Q8_0, compressed-tensors
        (Integers(8, 32, symmetric=False), range(256), range(256)),
        (Integers(8, 32), E2M1, [0]),  # of MXFP4, whose halves are whole numbers of half the scale
        (Integers(4, symmetric=False), range(16), range(16)),
    ],
)
def test_what_was_quantised_in_such_blocks_is_carried_over_to_the_bit(
    form: Integers, numbers: Iterable[float], offsets: Iterable[float]
) -> None:
    generator = np.random.default_rng(0)
    groups = 256 // (form.block or 256)
    scale = (generator.random((40, groups, 1)) * 0.02 + 1e-4).astype(np.float16).astype(np.float32)
    scale[7], scale[8] = np.float16(6e-8), np.float16(2047 / 2**14)
    scale = 2.0 ** np.floor(np.log2(scale)) if numbers is E2M1 else scale
    drawn = generator.choice(np.float32(list(numbers)), (40, groups, 256 // groups))
    drawn[3] = drawn[3, :, :1]  # one number throughout
    weight = (drawn - generator.choice(np.float32(list(offsets)), scale.shape)) * scale
    weight[5] = 0
    weight = torch.from_numpy(weight.astype(np.float32).reshape(40, 256))
    assert torch.equal(form.as_stored(weight, "w"), weight.half().float())


def test_numbers_of_no_grid_are_stored_as_before() -> None:
    """A step that all have in common is there for any numbers of a float: it must be a scale of few levels."""
    weight = random(16, 64).half().float()
    data, scale, _ = Integers(8).quantize(weight.numpy())
    expected = np.rint(weight.numpy() / scale.astype(np.float32)).astype(np.int8)
    assert np.array_equal(data.view(np.int8), expected)
