"""transformers' products as Core AI's runtime on Linux takes them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coreai_recipes.verification.half_sums import SumsInFloat16, multiply


@pytest.fixture
def halves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 70, generator=generator).half(), torch.randn(2, 70, 5, generator=generator).half()


def test_a_product_is_rounded_at_each_step(halves: tuple[Tensor, Tensor]) -> None:
    a, b = halves
    expected = torch.zeros(3, 5, dtype=torch.float16)
    for step in range(70):
        expected = expected + a[0, :, step : step + 1] * b[0, step : step + 1]
    assert torch.equal(multiply(a, b)[0], expected)
    assert not torch.equal(multiply(a, b), torch.matmul(a.float(), b.float()).half())


def test_products_of_activations_are_taken_so_and_those_of_weights_are_not(halves: tuple[Tensor, Tensor]) -> None:
    a, b = halves
    weight, summed = torch.nn.Parameter(b[0].T.clone()), multiply(a, b)
    usual = F.linear(a, weight)
    with SumsInFloat16():
        assert torch.equal(a @ b, summed)
        assert torch.equal(torch.bmm(a, b), summed)
        assert torch.equal(torch.baddbmm(torch.ones_like(summed), a, b), 1 + summed)
        assert torch.equal(F.linear(a, weight), usual)
        assert torch.equal(torch.matmul(a.float(), b.float()), a.float() @ b.float())
    assert torch.equal(a @ b, torch.matmul(a, b))


class SmallExperts(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[0])


@torch.no_grad()
def test_weights_of_experts_are_multiplied_as_activations_are(halves: tuple[Tensor, Tensor]) -> None:
    a, b = halves
    experts, sums = SmallExperts(b.transpose(1, 2).clone()), SumsInFloat16()
    sums.watch(nn.Sequential(experts))
    with sums:
        assert torch.equal(experts(a[0]), multiply(a[0], b[0]))


@pytest.mark.parametrize("masked", ["nothing", "causal", "numbers", "flags"])
def test_attention_is_torchs_own_with_these_products(masked: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 16, generator=generator).half() for heads in (4, 2, 2))
    seen = torch.ones(9, 9, dtype=torch.bool).tril(2)
    masks = {"numbers": torch.zeros(9, 9).masked_fill(~seen, -1e4).half(), "flags": seen}
    given = {"attn_mask": masks.get(masked), "is_causal": masked == "causal", "enable_gqa": True}
    theirs = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **_widened(given))
    with SumsInFloat16():
        ours = F.scaled_dot_product_attention(q, k, v, **given)
    assert ours.dtype == torch.float16
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=4e-3)


def _widened(given: dict[str, object]) -> dict[str, object]:
    mask = given["attn_mask"]
    return given | {"attn_mask": mask.float() if isinstance(mask, Tensor) and mask.is_floating_point() else mask}
