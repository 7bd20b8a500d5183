import pytest
import torch

from coreai_recipes.errors import CheckpointError
from coreai_recipes.storage.float16 import PIECE_ELEMENTS, to_float16

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", [1, 7, PIECE_ELEMENTS - 1, 2 * PIECE_ELEMENTS + 3])
def test_every_dtype_becomes_what_torch_makes_of_it(dtype, elements):
    block = (torch.randn(elements, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    block[0] = 65504.0 if dtype != torch.bfloat16 else 65280.0
    assert torch.equal(to_float16(block, "w"), block.to(torch.float16))
    out = torch.empty(elements, dtype=torch.float16)
    ours = to_float16(block, "w", out)
    assert ours.data_ptr() == out.data_ptr()
    assert torch.equal(out, block.to(torch.float16))


def test_shapes_and_views_are_kept():
    block = torch.randn(6, 10).bfloat16().t()
    assert torch.equal(to_float16(block, "w"), block.to(torch.float16))
    assert to_float16(block, "w", torch.empty(60, dtype=torch.float16)).shape == (10, 6)
    assert to_float16(torch.empty(0, 3), "w").shape == (0, 3)


def test_a_float16_block_is_not_copied():
    block = torch.randn(5).half()
    assert to_float16(block, "w") is block


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "model.norm.weight holds NaN"),
        (float("inf"), "model.norm.weight holds an infinity"),
        (float("-inf"), "model.norm.weight holds an infinity"),
    ],
)
def test_nan_and_infinity_are_refused_by_tensor(dtype, value, message):
    block = torch.zeros(3, 1000, dtype=dtype)
    block[2, 777] = value
    with pytest.raises(CheckpointError) as caught:
        to_float16(block, "model.norm.weight")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        (torch.bfloat16, 65536.0, "65536"),
        (torch.bfloat16, -(2.0**127), "-1.701412e+38"),
        (torch.float32, 65504.01, "65504.01"),
        (torch.float32, -65510.0, "-65510"),
        (torch.float64, 1e300, "1e+300"),
    ],
)
def test_a_value_outside_float16_is_refused_by_tensor(dtype, value, said):
    block = torch.zeros(1000, dtype=dtype)
    block[500] = value
    with pytest.raises(CheckpointError) as caught:
        to_float16(block, "lm_head.weight")
    assert str(caught.value) == f"lm_head.weight holds {said}, and float16 ends at 65,504"
