"""Mamba-2's mixer in the place of attention: what is kept of all positions is one matrix for each head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.carried import CarriedTensor
from coreai_recipes.primitives.causal_conv import CausalConvolution, tail_of
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.primitives.softplus import softplus
from coreai_recipes.primitives.state_space import state_space
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm
from coreai_recipes.recipe.schema import Mamba2 as Mamba2Spec


@register("attention", "mamba2")
class Mamba2(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S).

    `mixed` is values, keys and queries, which the convolution takes as they lie (a checkpoint's x, B, C). A head's step
    dt, softplus(step(x) + step_offset), is a factor of what it writes, and rate * dt the logarithm of what it keeps.
    """

    def __init__(self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: bool = False) -> None:
        super().__init__()
        self.spec = spec = _spec_of(kind)
        values, heads = spec.num_value_heads * spec.value_dim, spec.num_value_heads
        self.gate = Projection(hidden_size, values, spec.bias)
        self.mixed = Projection(hidden_size, _channels_of(spec), spec.bias)
        self.step = Projection(hidden_size, heads, spec.bias)
        self.activation = ACTIVATIONS[spec.activation]
        self.conv = CausalConvolution(_channels_of(spec), spec.taps, spec.conv_bias)
        self.step_offset = nn.Parameter(torch.empty(1, heads, 1, 1), requires_grad=False)
        self.rate = nn.Parameter(torch.empty(1, heads, 1, 1), requires_grad=False)
        self.skip = nn.Parameter(torch.empty(1, heads, 1, 1), requires_grad=False)
        eps = norm.eps if spec.eps is None else spec.eps
        self.out_norm = build_norm(RMSNorm(kind="rms", eps=eps, weight="none"), values // spec.num_key_heads)
        self.norm_scale = nn.Parameter(torch.empty(1, values, 1, 1), requires_grad=False)
        self.last = Projection(values, hidden_size, spec.bias)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[CarriedTensor, ...]:
        """The convolution's inputs at the last positions, and each head's matrix."""
        spec = _spec_of(kind)
        return tail_of(_channels_of(spec), spec.taps), _matrix_of(spec)

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        spec, S = self.spec, x.shape[3]
        G, M, K, V = spec.num_key_heads, spec.num_value_heads // spec.num_key_heads, spec.key_dim, spec.value_dim
        mixed = self.activation(self.conv(self.mixed(x), given, cache))
        v, k, q = torch.split(mixed, [G * M * V, G * K, G * K], 1)
        step = softplus(self.step(x) + self.step_offset)  # (1, G * M, 1, S)
        if given.padding is not None:  # it neither writes nor lets anything fade
            step = step.masked_fill(given.padding.view(1, 1, 1, S) > 0, 0.0)
        tensor, heads = _matrix_of(spec), (G, M, 1, S)
        v = v.view(G, M, V, S)
        state = cache.carried.earlier(tensor).view(G, M, V, K)
        g = (step * self.rate).view(heads)
        read, state = state_space(q.view(G, 1, K, S), k.view(G, 1, K, S), v * step.view(heads), g, state)
        cache.carried.leave(tensor, state.view(1, G * M, V, K))
        read = read + v * self.skip.view(G, M, 1, 1)
        y = self.out_norm(read.view(G, M * V, 1, S) * F.silu(self.gate(x)).view(G, M * V, 1, S))
        out: Tensor = self.last(y.view(1, G * M * V, 1, S) * self.norm_scale)
        return out


def _channels_of(spec: Mamba2Spec) -> int:
    return spec.num_value_heads * spec.value_dim + 2 * spec.num_key_heads * spec.key_dim


def _matrix_of(spec: Mamba2Spec) -> CarriedTensor:
    return CarriedTensor("recurrent", (spec.num_value_heads, spec.value_dim, spec.key_dim))


def _spec_of(kind: LayerKind) -> Mamba2Spec:
    spec = kind.attention
    if not isinstance(spec, Mamba2Spec):
        raise TypeError(f"{spec.kind} attention is no Mamba-2")
    return spec
