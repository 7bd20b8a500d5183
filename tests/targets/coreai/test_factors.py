"""Scalars that the compiler would join: x * a * b as x * high + x * low."""

import numpy as np
import pytest
import torch

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.targets.coreai.factors import NORMAL, halves_of, keep_factors


@pytest.mark.parametrize("factor", [32**-0.5, 128**-0.5, 512**-0.5, 1 / 30, 1 / 50, -0.3])
def test_two_normal_halves_hold_a_factor(factor: float) -> None:
    halves = halves_of(factor)
    assert abs(sum(halves) / factor - 1) < 1e-6
    assert all(float(np.float16(half)) == half and abs(half) >= NORMAL for half in halves)


class Scaling(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(x, self.factor) + 1


@pytest.mark.parametrize(("factor", "products", "sums"), [(32**-0.5, 2, 2), (0.5, 1, 1)])
def test_a_row_of_products_becomes_a_sum_of_two(factor: float, products: int, sums: int) -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(Scaling(factor), (x,))
    keep_factors(exported.graph)
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(torch.ops.aten.mul.Tensor) == products
    assert targets.count(torch.ops.aten.add.Tensor) == sums
    exported.graph_module.recompile()
    torch.testing.assert_close(exported.graph_module(x)[0], Scaling(factor)(x), rtol=1e-6, atol=1e-6)
