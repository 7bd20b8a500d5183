"""Factors that survive float16: how exact they are, and what they cost."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coreai_recipes.primitives.constants import scaled


class Multiplications(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the constants that tensors are multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.constants: list[float] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.ops.aten.mul.Tensor:
            self.constants.append(args[1].item() if isinstance(args[1], Tensor) else args[1])
        return function(*args, **(kwargs or {}))


def constants_of(factor: float) -> list[float]:
    with Multiplications() as multiplications:
        scaled(torch.ones(3), factor)
    return multiplications.constants


def assert_exact(factor: float) -> None:
    constants = constants_of(factor)
    assert [float(np.float16(constant)) for constant in constants] == constants, "a constant is no float16"
    assert math.prod(constants) == pytest.approx(factor, rel=1e-6, abs=0)
    # and each multiplication rounds once more, in float32
    x = torch.tensor([1.0, -3.7, 1e4])
    found = scaled(x, factor).double()
    assert torch.allclose(found, x.double() * factor, rtol=1e-6 + len(constants) * 2**-24, atol=0)


def test_every_head_dims_scale_is_exact_to_1e_7() -> None:
    for head_dim in range(1, 1025):
        assert_exact(head_dim**-0.5)


def test_every_hidden_sizes_root_is_exact_to_1e_7() -> None:
    for hidden_size in range(16, 20000, 16):
        assert_exact(math.sqrt(hidden_size))


def test_every_softcap_and_its_inverse_is_exact_to_1e_7() -> None:
    for softcap in range(1, 500):
        assert_exact(float(softcap))
        assert_exact(1 / softcap)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.floats(1e-12, 1e12))
def test_any_factor_is_exact_to_1e_7_also_beyond_float16s_range(factor: float) -> None:
    assert_exact(factor)


@pytest.mark.parametrize(
    ("factor", "count"), [(1.0, 0), (0.125, 1), (50.0, 1), (2.0**-14, 1), (0.1, 2), (128**-0.5, 2), (112**-0.5, 3)]
)
def test_no_more_multiplications_than_it_takes(factor: float, count: int) -> None:
    """One costs nothing, a float16 one; of others most need three: the nearest product of two is off by up to 6e-6."""
    assert len(constants_of(factor)) == count


def test_a_single_float16_constant_would_cost_40_db() -> None:
    """Why there are several: 128^-0.5 alone is off by 1e-4 in float16."""
    assert abs(float(np.float16(128**-0.5)) / 128**-0.5 - 1) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert scaled(torch.ones(2, dtype=dtype), 0.1).dtype == dtype
