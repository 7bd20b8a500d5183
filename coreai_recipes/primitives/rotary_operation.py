"""A rotary as one operation of torch over whole heads, which `targets/coreai` writes as Core AI's composite `rope`.

A leaf. The eager form is the rotation itself, so the module that is compared is the module that is converted.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

OF_POSITIONS, OF_ANGLES = "coreai_recipes::rope_of_positions", "coreai_recipes::rope_of_angles"


def turn_by_positions(x: Tensor, positions: Tensor, inv_freq: Sequence[float]) -> Tensor:
    """x (1, H, S, D) turned at integer `positions` (1, S): pair (i, i + D/2) by positions * inv_freq[i], of D/2 float32
    numbers. Angles, cos and sin are float32, and rounded to x's dtype once."""
    return cast(Tensor, torch.ops.coreai_recipes.rope_of_positions(x, positions, inv_freq))


def turn_by_angles(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (1, H, S, D) turned by cos and sin (1, 1, S, D/2) of each pair (i, i + D/2), all of one dtype."""
    return cast(Tensor, torch.ops.coreai_recipes.rope_of_angles(x, cos, sin))


def _of_positions(x: Tensor, positions: Tensor, inv_freq: Sequence[float]) -> Tensor:
    angles = positions[:, None, :, None].float() * torch.tensor(inv_freq, dtype=torch.float32, device=x.device)
    return _of_angles(x, angles.cos().to(x.dtype), angles.sin().to(x.dtype))


def _of_angles(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.turned_by = inputs[1:]


def _back_of_positions(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """A rotation's transpose is the rotation back."""
    positions, inv_freq = ctx.turned_by
    return _of_positions(gradient, positions, [-each for each in inv_freq]), None, None


def _back_of_angles(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    cos, sin = ctx.turned_by
    return _of_angles(gradient, cos, -sin), None, None


def _declare() -> None:
    for name, signature, function, back in (
        (OF_POSITIONS, "(Tensor x, Tensor positions, float[] inv_freq)", _of_positions, _back_of_positions),
        (OF_ANGLES, "(Tensor x, Tensor cos, Tensor sin)", _of_angles, _back_of_angles),
    ):
        torch.library.define(name, f"{signature} -> Tensor")
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        torch.library.register_fake(name, lambda x, *_: torch.empty_like(x))
        torch.library.register_autograd(name, back, setup_context=_save)


_declare()
