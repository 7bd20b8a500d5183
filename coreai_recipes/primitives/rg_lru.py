"""The recurrent block of Griffin in the place of attention (RecurrentGemma): a convolution, and a real-gated linear
recurrent unit behind it, which keeps one number for each channel."""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.carried import CarriedTensor
from coreai_recipes.primitives.causal_conv import CausalConvolution, tail_of
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.primitives.scan import scan
from coreai_recipes.recipe.schema import RGLRU as RGLRUSpec
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold

EXPONENT = -8.0  # c of the paper: a channel keeps exp(-c * softplus(rate) * gate)


class BlockProjection(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S), each of N blocks of channels by a matrix of its own: weight (N, C/N, C/N), its
    rows those of what comes out, and bias (N, C/N)."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        width = channels // blocks
        self.weight = nn.Parameter(torch.empty(blocks, width, width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(blocks, width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        N, width = self.bias.shape
        out = torch.matmul(self.weight, x.view(N, width, x.shape[3])) + self.bias.unsqueeze(2)
        return out.view(x.shape)


@register("attention", "rg_lru")
class RGLRU(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S).

    A channel's state is h <- a h + sqrt(1 - a^2) * input_gate * v, with a = exp(EXPONENT * rate * keep_gate). The first
    token of all is written whole.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__()
        self.spec = spec = _spec_of(kind)
        self.gate = Projection(hidden_size, spec.channels, True)
        self.activation = ACTIVATIONS[spec.activation]
        self.mixed = Projection(hidden_size, spec.channels, True)
        self.conv = CausalConvolution(spec.channels, spec.taps, True)
        self.input_gate = BlockProjection(spec.channels, spec.blocks)
        self.keep_gate = BlockProjection(spec.channels, spec.blocks)
        self.rate = nn.Parameter(torch.empty(1, spec.channels, 1, 1), requires_grad=False)
        self.last = Projection(spec.channels, hidden_size, True)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[CarriedTensor, ...]:
        """The convolution's inputs at the last positions, and each channel's number."""
        spec = _spec_of(kind)
        return tail_of(spec.channels, spec.taps), _numbers_of(spec)

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        C, S, tensor = self.spec.channels, x.shape[3], _numbers_of(self.spec)
        v = self.conv(self.mixed(x), given, cache)
        g = torch.sigmoid(self.keep_gate(v)) * self.rate * EXPONENT
        written = _share_written(g)
        if given.starts is not None:
            written = torch.maximum(written, given.starts)
        v = v * torch.sigmoid(self.input_gate(v)) * written
        if given.padding is not None:  # it neither writes nor lets anything fade
            padding = given.padding.view(1, 1, 1, S) > 0
            v, g = v.masked_fill(padding, 0.0), g.masked_fill(padding, 0.0)
        states = scan(v, g, cache.carried.earlier(tensor).view(1, C, 1, 1), S)
        cache.carried.leave(tensor, states[..., -1:].view(1, C))
        out: Tensor = self.last(states * self.activation(self.gate(x)))
        return out


def _share_written(g: Tensor) -> Tensor:
    """sqrt(1 - exp(2 g)) of g <= 0. Where a channel forgets little, 1 - exp(2 g) is what float16 loses of 1; with
    t = tanh(-g) it is 2 t / (1 + t), which loses nothing."""
    t = torch.tanh(-g)
    return torch.sqrt(t * 2 / (t + 1))


def _numbers_of(spec: RGLRUSpec) -> CarriedTensor:
    return CarriedTensor("recurrent", (spec.channels,))


def _spec_of(kind: LayerKind) -> RGLRUSpec:
    spec = kind.attention
    if not isinstance(spec, RGLRUSpec):
        raise TypeError(f"{spec.kind} attention is no RG-LRU")
    return spec
