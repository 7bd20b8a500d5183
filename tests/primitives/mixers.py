"""What the tests of layers with a recurrence share: tokens, whole and in padded calls, and faults of carrying."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coreai_recipes.primitives.cache import NoCache
from coreai_recipes.primitives.carried import Carried, tail_placement
from coreai_recipes.primitives.layer_inputs import LayerInputs

HIDDEN, S = 48, 150
CALLS = [(8, 7), (8, 8), (8, 1), (64, 41), (64, 64), *[(1, 1)] * 29]


def tokens(distinct: int = S) -> Tensor:
    drawn = torch.randn(1, distinct, HIDDEN, generator=torch.Generator().manual_seed(2))
    return drawn.repeat(1, -(-S // distinct), 1)[:, :S]


def whole(ours: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return by_position(ours(x.transpose(1, 2).unsqueeze(2), LayerInputs(), NoCache()))


def by_position(y: Tensor) -> Tensor:
    return y.squeeze(2).transpose(1, 2)


def by_calls(ours: nn.Module, x: Tensor, calls: list[tuple[int, int]]) -> Tensor:
    """By calls of so many tokens, so many of them real: what stands behind these is other tokens."""
    carried: dict[str, Tensor] = {}
    found, position = [], 0
    for size, count in calls:
        given = torch.full((1, size, HIDDEN), 3.0)
        given[:, :count] = x[:, position : position + count]
        inputs: dict[str, Any] = {"starts": (position + torch.arange(size) == 0).float().view(1, 1, 1, size)}
        if size > 1:
            inputs["tail"] = tail_placement(2, size, torch.tensor([count]))
            inputs["padding"] = (torch.arange(size) >= count).float().view(1, 1, size, 1)
        cache = NoCache(Carried(carried))
        with torch.no_grad():
            y = ours(given.transpose(1, 2).unsqueeze(2), LayerInputs(**inputs), cache)
        found.append(by_position(y)[:, :count])
        carried, position = cache.carried.left, position + count
    return torch.cat(found, 1)


def let_padding_write(patch: pytest.MonkeyPatch) -> None:
    """In layers whose padded tokens are filled with what neither writes nor fades."""
    patch.setattr(Tensor, "masked_fill", lambda x, *_: x)


def begin_anew(patch: pytest.MonkeyPatch) -> None:
    """Each call on a recurrence of zeros."""
    right = Carried.earlier

    def zeros(carried: Carried, tensor: Any) -> Tensor:
        return right(Carried() if tensor.name == "recurrent" else carried, tensor)

    patch.setattr(Carried, "earlier", zeros)
