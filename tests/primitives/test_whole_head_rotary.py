"""Rotaries over whole heads, as one operation: the same numbers as the registered rotary's, in another order."""

import pytest
import torch
from rotary_specs import HEADS, SPECS, D

from coreai_recipes.primitives.rotary import Rotary, WholeHeadRotary, build_rotary, fold_order
from coreai_recipes.recipe import schema

POSITIONS = torch.arange(90, 97)


def both_turned(spec: schema.FullRotary, x: torch.Tensor, context: int | None = None) -> tuple[torch.Tensor, ...]:
    """x (H, D, 1, S) by the registered rotary, and by the operation, back in the checkpoint's order."""
    order = fold_order(spec, D, "whole_head") or tuple(range(D))
    plain, whole = (build_rotary(spec, D, fold, context) for fold in (None, "whole_head"))
    assert isinstance(whole, WholeHeadRotary)
    turned = whole.turn(x[:, list(order)], tuple(whole.given(POSITIONS).values()))
    return plain.turn(x, tuple(plain.given(POSITIONS).values())), turned[:, torch.tensor(order).argsort()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_the_operation_turns_to_the_bit_as_the_registered_rotary(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(HEADS, D, 1, len(POSITIONS), generator=torch.Generator().manual_seed(3)).to(dtype)
    theirs, ours = both_turned(SPECS[name], x, 96)
    assert not torch.equal(theirs, x)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SPECS)
def test_there_is_a_frequency_for_each_pair_of_the_head(name: str) -> None:
    whole = build_rotary(SPECS[name], D, "whole_head")
    assert len(whole.inv_freq) == D // 2
    ports = whole.ports(5)
    assert ports == {port: tuple(tensor.shape) for port, tensor in whole.given(torch.arange(5)).items()}
    assert ("positions" in ports) == (
        name not in ("yarn", "yarn, backwards", "partial, longrope", "product in float32", "coarse angles")
    )


@pytest.mark.parametrize("name", ["full", "yarn", "partial, interleaved"])
def test_its_gradient_is_that_of_the_registered_rotary(name: str) -> None:
    generator = torch.Generator().manual_seed(4)
    start, towards = torch.randn(2, HEADS, D, 1, len(POSITIONS), generator=generator)
    gradients = []
    for number in range(2):
        x = start.clone().requires_grad_()
        with torch.enable_grad():
            (both_turned(SPECS[name], x)[number] * towards).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_orders_of_a_head() -> None:
    """8 dimensions of which 4 turn: pairs in either half, where what passes stands behind them."""
    half = schema.PartialRotary(kind="partial", factor=0.5, theta=1e4)
    interleaved = half.model_copy(update={"pairing": "interleaved"})
    proportional = schema.ProportionalRotary(kind="proportional", factor=0.5, theta=1e4)
    assert fold_order(half, 8, "contiguous") is None
    assert fold_order(half, 8, "whole_head") == (0, 1, 4, 5, 2, 3, 6, 7)
    assert fold_order(interleaved, 8, "contiguous") == (0, 2, 1, 3, 4, 5, 6, 7)
    assert fold_order(interleaved, 8, "whole_head") == (0, 2, 4, 5, 1, 3, 6, 7)
    assert fold_order(proportional, 8, "contiguous") == (0, 1, 4, 5, 2, 3, 6, 7)
    assert fold_order(proportional, 8, "whole_head") is None
    assert fold_order(half, 8, None) is None


def test_layers_without_positions_have_no_operation() -> None:
    none = build_rotary(schema.NoRotary(kind="none"), D, "whole_head")
    assert not isinstance(none, WholeHeadRotary)
    assert isinstance(none, Rotary)
    assert none.ports(5) == {}
