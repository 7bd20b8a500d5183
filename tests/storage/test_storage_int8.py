"""int8 per channel: how near it comes, what it never does, and that others who read it get the same numbers."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale
from torch import Tensor

from coreai_recipes.errors import CheckpointError
from coreai_recipes.storage.int8 import Int8, scales_of

INT8 = Int8()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def encoded(weight: Tensor, shape: tuple[int, ...] | None = None) -> list[np.ndarray]:
    parts: list[list[np.ndarray]] = [[], []]
    for part, values in INT8.encode([weight], shape or tuple(weight.shape), "w"):
        parts[part].append(values.reshape(-1).copy())
    return [np.concatenate(values) for values in parts]


@pytest.mark.parametrize("largest", [3e-7, 1e-5, 1e-3, 0.2, 40.0, 65504.0])
def test_no_weight_is_further_off_than_half_a_step_and_the_largest_is_not_cut_off(largest: float) -> None:
    """A scale that is rounded down cuts the largest off: by a third where scales are float16's smallest."""
    weight = random(64, 200)
    weight = weight / weight.abs().amax(1, keepdim=True) * largest
    step = torch.from_numpy(scales_of(weight.abs().amax(1).numpy())).float()[:, None]
    ours = INT8.as_stored(weight, "w")
    rounding = ours.abs() * 2**-11 + 2.0**-25  # of the product to float16
    assert ((ours - weight).abs() <= step / 2 * 1.0001 + rounding).all() or largest == 65504.0
    assert ((ours - weight).abs().amax(1) <= 33 + step[:, 0]).all()
    assert ours.isfinite().all()


def test_a_row_of_zeros_and_one_of_a_single_value_are_exact() -> None:
    weight = torch.stack((torch.zeros(32), torch.full((32,), 0.5), torch.full((32,), -127 * 2.0**-7)))
    assert torch.equal(INT8.as_stored(weight, "w")[[0, 2]], weight[[0, 2]])
    assert INT8.as_stored(weight, "w")[1].unique().numel() == 1
    assert encoded(weight)[1].tolist() == [1, float(scales_of(np.float32([0.5]))[0]), 2.0**-7]


def test_coremltools_makes_the_same_weights_of_the_parts() -> None:
    weight = random(24, 40) * 0.1
    weight[3] *= 1e-5
    weight[5, 7] = 60000.0
    data, scale = encoded(weight)
    theirs = constexpr_blockwise_shift_scale.decompress(data.reshape(24, 40), scale.reshape(24, 1), None)
    assert torch.equal(INT8.as_stored(weight, "w"), torch.from_numpy(theirs.astype(np.float32)))
    assert torch.equal(INT8.decode([data, scale], (24, 40)), INT8.as_stored(weight, "w"))


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
    weight, alive = random(50, 16), 0

    def blocks() -> Iterator[Tensor]:
        nonlocal alive
        for start in range(0, 50, 7):
            alive += 1
            yield weight[start : start + 7]

    found = []
    for part, values in INT8.encode(blocks(), (50, 16), "w"):
        assert part == 1 or alive == len(found) + 1  # a block's data come before the next block is asked for
        found.append(values.reshape(-1).copy())
    assert [np.concatenate(found[:-1]).tolist(), found[-1].tolist()] == [part.tolist() for part in encoded(weight)]


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "holds NaN"), (70000.0, "holds 70000, and float16 ends")])
def test_what_float16_cannot_hold_is_refused_by_name(value: float, said: str) -> None:
    weight = random(4, 4)
    weight[2, 1] = value
    with pytest.raises(CheckpointError, match=f"^model.up.weight {said}"):
        INT8.as_stored(weight, "model.up.weight")
