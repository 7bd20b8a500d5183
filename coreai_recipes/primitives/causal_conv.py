"""A causal convolution of each channel over the last few positions, in the form that an engine takes.

A depthwise convolution would leave the engine. Its inputs are slices of one row of tokens instead, the tail of earlier
calls and the call's own behind it, and each tap is a product: what is summed is exact in every precision.
"""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.buffer import Buffer
from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.carried import CarriedTensor
from coreai_recipes.primitives.layer_inputs import LayerInputs

ROWS = "conv"  # the part of a buffer that holds a convolution's inputs


class CausalConvolution(nn.Module):
    """weight (1, C, T, 1), the tap of the latest position last, a checkpoint's (C, 1, T); bias (1, C, 1, 1) or none."""

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, taps, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(1, channels, 1, 1), requires_grad=False) if bias else None
        self.tail = tail_of(channels, taps)

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        """x (1, C, 1, S) -> (1, C, 1, S), and the next call's tail left in the cache."""
        S, taps = x.shape[3], self.weight.shape[2]
        if given.padding is not None:  # its tokens never come into a tail, but 0 x inf is NaN
            x = x.masked_fill(given.padding.view(1, 1, 1, S) > 0, 0.0)
        earlier, buffer = cache.carried.earlier(self.tail), cache.carried.buffer  # (1, T - 1, C)
        if buffer is not None:
            buffer.leave(ROWS, x.squeeze(2).transpose(1, 2))
            earlier = tail_since(earlier, buffer, given.before)
        rows = torch.cat((earlier.transpose(1, 2).unsqueeze(2), x), 3)
        if buffer is None:
            cache.carried.leave(self.tail, self._next_tail(rows, S, given))
        seen = rows.view(1, -1, taps, 1) if S == 1 else torch.cat([rows[:, :, :, t : t + S] for t in range(taps)], 2)
        y = (seen * self.weight).sum(2, keepdim=True)  # (1, C, 1, S)
        return y if self.bias is None else y + self.bias

    def _next_tail(self, rows: Tensor, S: int, given: LayerInputs) -> Tensor:
        """(1, T - 1, C), of the tail before the call and its tokens, (1, C, 1, T - 1 + S)."""
        if given.tail is None:
            return rows[:, :, :, S:].squeeze(2).transpose(1, 2)
        return torch.matmul(given.tail, rows.squeeze(2).transpose(1, 2))


def tail_since(tail: Tensor, buffer: Buffer, before: Tensor | None) -> Tensor:
    """The tail (N, T, C) at the position that `before` says (`buffer.tail_of_rows`), of that at the last commit."""
    if before is None:
        raise ValueError("a call on rows must say which of them come before it")
    return torch.matmul(before, torch.cat((tail, buffer.part(ROWS)), 1))


def tail_of(channels: int, taps: int) -> CarriedTensor:
    """What a convolution carries: its inputs at all positions that an output sees but its own."""
    return CarriedTensor("conv", (taps - 1, channels), is_tail=True)
