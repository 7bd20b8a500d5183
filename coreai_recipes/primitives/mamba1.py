"""Mamba-1's mixer in the place of attention: each channel has a state of a few numbers, which fade at rates of their
own."""

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
from coreai_recipes.primitives.scan import scan
from coreai_recipes.primitives.softplus import softplus
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold
from coreai_recipes.recipe.schema import Mamba1 as Mamba1Spec

CHUNK = 16  # a call of 64 holds the states of 16 tokens at a time: of 8192 channels of 16 numbers 4 MB, not 16


@register("attention", "mamba1")
class Mamba1(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S).

    `selection` is what makes the state space depend on its input: a step of low rank, keys and queries (a checkpoint's
    x_proj: dt, B, C). A channel's step dt, softplus(step_up(...)), is a factor of what it writes, and rate * dt the
    logarithm of what each number of its state keeps.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__()
        self.spec = spec = _spec_of(kind)
        channels, rank, keys = spec.channels, spec.step_rank, spec.key_dim
        self.gate = Projection(hidden_size, channels, spec.bias)
        self.mixed = Projection(hidden_size, channels, spec.bias)
        self.activation = ACTIVATIONS[spec.activation]
        self.conv = CausalConvolution(channels, spec.taps, spec.conv_bias)
        self.selection = Projection(channels, rank + 2 * keys)
        inner = spec.selection_norm
        self.step_norm = build_norm(inner, rank) if inner else nn.Identity()
        self.key_norm = build_norm(inner, keys) if inner else nn.Identity()
        self.query_norm = build_norm(inner, keys) if inner else nn.Identity()
        self.step_up = Projection(rank, channels, True)
        self.rate = nn.Parameter(torch.empty(1, channels, keys, 1), requires_grad=False)
        self.skip = nn.Parameter(torch.empty(1, channels, 1, 1), requires_grad=False)
        self.last = Projection(channels, hidden_size, spec.bias)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[CarriedTensor, ...]:
        """The convolution's inputs at the last positions, and the numbers of each channel."""
        spec = _spec_of(kind)
        return tail_of(spec.channels, spec.taps), _numbers_of(spec)

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        spec, S = self.spec, x.shape[3]
        C, N = spec.channels, spec.key_dim
        tensor = _numbers_of(spec)
        v = self.activation(self.conv(self.mixed(x), given, cache))
        step, k, q = torch.split(self.selection(v), [spec.step_rank, N, N], 1)
        k, q = self.key_norm(k).view(1, 1, N, S), self.query_norm(q).view(1, 1, N, S)
        step = softplus(self.step_up(self.step_norm(step)))  # (1, C, 1, S)
        if given.padding is not None:  # it neither writes nor lets anything fade
            step = step.masked_fill(given.padding.view(1, 1, 1, S) > 0, 0.0)
        before = cache.carried.earlier(tensor).view(1, C, N, 1)
        states = scan(v * step * k, step * self.rate, before, CHUNK)  # (1, C, N, S)
        cache.carried.leave(tensor, states[..., -1:].view(1, C, N))
        read = _read(states, q) + v * self.skip
        out: Tensor = self.last(read * F.silu(self.gate(x)))
        return out


def _read(states: Tensor, q: Tensor) -> Tensor:
    """Each token's query times its own states: (1, C, N, S) and (1, 1, N, S) -> (1, C, 1, S)."""
    C, N, S = states.shape[1:]
    if S == 1:  # as one product, none of whose terms is rounded
        return torch.matmul(states.view(1, 1, C, N), q).view(1, C, 1, 1)
    return (states * q).sum(2, keepdim=True)


def _numbers_of(spec: Mamba1Spec) -> CarriedTensor:
    return CarriedTensor("recurrent", (spec.channels, spec.key_dim))


def _spec_of(kind: LayerKind) -> Mamba1Spec:
    spec = kind.attention
    if not isinstance(spec, Mamba1Spec):
        raise TypeError(f"{spec.kind} attention is no Mamba-1")
    return spec
