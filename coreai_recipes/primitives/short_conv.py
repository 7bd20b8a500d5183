"""A short causal convolution in the place of attention (LFM2), in the form that an engine takes.

Its inputs of earlier positions are rows of a cache by position, as keys and values are: padding is never written into
them, and calling again at an earlier position finds what it needs. A depthwise convolution would leave the engine; each
tap's inputs are brought to its outputs by a product with zeros and ones instead, which is exact in every precision.
"""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.cache import Cache, KeptRows
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm
from coreai_recipes.recipe.schema import ShortConvolution as ShortConvolutionSpec


class Taps(nn.Module):
    """weight (1, C, T, 1), the tap of the latest position last, a checkpoint's (C, 1, T); bias (1, C, 1, 1) or none."""

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels, taps, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(1, channels, 1, 1), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (1, C, T, S), of each output the inputs that it sees -> (1, C, 1, S)."""
        y = (x * self.weight).sum(2, keepdim=True)
        return y if self.bias is None else y + self.bias


@register("attention", "short_conv")
class ShortConvolution(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S)."""

    def __init__(self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: bool = False) -> None:
        super().__init__()
        spec = kind.attention
        if not isinstance(spec, ShortConvolutionSpec):
            raise TypeError(f"{spec.kind} attention is no convolution")
        self.half_width = spec.head_dim
        self.input = Projection(hidden_size, 3 * spec.channels, spec.bias)
        self.conv = Taps(spec.channels, spec.taps, spec.bias)
        self.last = Projection(spec.channels, hidden_size, spec.bias)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[KeptRows, ...]:
        """The convolution's inputs at the last positions, half of their channels as keys and half as values."""
        spec = kind.attention
        if not isinstance(spec, ShortConvolutionSpec):
            raise TypeError(f"{spec.kind} attention is no convolution")
        return (KeptRows(1, spec.head_dim, spec.taps),)

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        D, S = self.half_width, x.shape[3]
        before, after, values = self.input(x).chunk(3, 1)  # (1, C, 1, S) each
        rows = (before * values).view(2, D, S).transpose(1, 2)  # (2, S, D)
        seen = torch.cat(cache.update(rows[:1], rows[1:]), 3)  # (1, 1, K, C)
        inputs = torch.matmul(seen.transpose(2, 3), given.mask)  # (1, 1, C, T * S)
        y: Tensor = self.last(after * self.conv(inputs.view(1, 2 * D, -1, S)))
        return y


def shifts(key_positions: Tensor, query_positions: Tensor, taps: int) -> Tensor:
    """(1, 1, K, T * S) float32: 1 where tap t of a query sees a key, taps - 1 - t positions before it.

    Rows that are empty have positions below 0 and are seen by none.
    """
    earlier = torch.arange(taps - 1, -1, -1, dtype=torch.int32, device=query_positions.device)
    wanted = (query_positions.unsqueeze(0) - earlier.unsqueeze(1)).flatten()  # (T * S,)
    keys = key_positions.unsqueeze(1)  # (K, 1)
    return ((keys >= 0) & (keys == wanted)).float().unsqueeze(0).unsqueeze(0)
