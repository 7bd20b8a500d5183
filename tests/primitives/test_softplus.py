"""softplus by hand against log1p(exp(x)) in float64."""

import pytest
import torch

from coreai_recipes.primitives.softplus import softplus

X = torch.linspace(-16, 16, 4001, dtype=torch.float64)


def worst(found: torch.Tensor, bound: float = -16.0) -> float:
    exact = torch.log1p(torch.exp(X))
    return float(((found.double() - exact) / exact)[bound <= X].abs().max())


def test_it_is_exact_far_below_zero_too() -> None:
    assert worst(softplus(X)) < 1e-8
    assert worst(softplus(X.float())) < 2e-6


def test_float16_keeps_what_one_plus_a_small_number_would_lose() -> None:
    by_one_plus = torch.relu(X.half()) + torch.log(1 + torch.exp(-X.half().abs()))
    assert worst(softplus(X.half()), bound=-9.0) < 0.01
    assert worst(by_one_plus, bound=-9.0) > 0.5


@pytest.mark.parametrize("x", [-60000.0, 60000.0, 0.0])
def test_no_float16_is_too_large_for_it(x: float) -> None:
    found = softplus(torch.tensor([x], dtype=torch.float16))
    assert float(found) == pytest.approx(max(x, 0.0) if x else 0.6931, rel=1e-3)
