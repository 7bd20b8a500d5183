"""Mamba-2's mixer in the place of attention: what is kept of all positions is one matrix for each head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.buffer import leave_in
from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.carried import Carried, CarriedTensor
from coreai_recipes.primitives.causal_conv import ROWS, CausalConvolution, tail_of, tail_since
from coreai_recipes.primitives.constants import at_least
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.recurrence import held_of, matrix_of
from coreai_recipes.primitives.registry import register
from coreai_recipes.primitives.softplus import softplus
from coreai_recipes.primitives.state_space import state_space, state_space_step
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold
from coreai_recipes.recipe.schema import Mamba2 as Mamba2Spec


@register("attention", "mamba2")
class Mamba2(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S).

    `mixed` is values, keys and queries, which the convolution takes as they lie (a checkpoint's x, B, C). A head's step
    dt, softplus(step(x) + step_offset), is a factor of what it writes, and rate * dt the logarithm of what it keeps.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
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
        scaled = RMSNorm(kind="rms", eps=eps, weight="none")
        self.out_norm = build_norm(scaled, values // spec.num_key_heads) if spec.norm != "none" else None
        one = torch.empty(1, values, 1, 1)
        self.norm_scale = nn.Parameter(one, requires_grad=False) if spec.norm != "none" else None
        self.last = Projection(values, hidden_size, spec.bias)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[CarriedTensor, ...]:
        """The convolution's inputs at the last positions, and each head's matrix."""
        spec = _spec_of(kind)
        return tail_of(_channels_of(spec), spec.taps), matrix_of(spec)

    @classmethod
    def row_parts(cls, kind: LayerKind) -> dict[str, int]:
        """The columns of a buffer's rows: the convolution's inputs, a token's keys, what it adds there, and how much
        each head keeps of what was before, as a logarithm."""
        spec = _spec_of(kind)
        heads, keys = spec.num_value_heads, spec.num_key_heads * spec.key_dim
        return {ROWS: _channels_of(spec), "keys": keys, "added": heads * spec.value_dim, "decays": heads}

    @classmethod
    def commit(cls, kind: LayerKind, carried: Carried, given: LayerInputs) -> None:
        """Leave what N layers carry, (N, ...), as it is behind the rows that `given` says are held."""
        spec = _spec_of(kind)
        tail, matrix = cls.states(kind)
        carried.leave(tail, tail_since(carried.earlier(tail), carried.rows, given.before))
        carried.leave_state(matrix, held_of(spec, carried, given).whole().view(-1, *matrix.shape))

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        spec, S = self.spec, x.shape[3]
        G, M, K, V = spec.num_key_heads, spec.num_value_heads // spec.num_key_heads, spec.key_dim, spec.value_dim
        mixed = self.activation(self.conv(self.mixed(x), given, cache))
        v, k, q = torch.split(mixed, [G * M * V, G * K, G * K], 1)
        step = softplus(self.step(x) + self.step_offset)  # (1, G * M, 1, S)
        if spec.step_min is not None:
            step = at_least(step, spec.step_min)
        if given.padding is not None:  # it neither writes nor lets anything fade
            step = step.masked_fill(given.padding.view(1, 1, 1, S) > 0, 0.0)
        tensor, heads = matrix_of(spec), (G, M, 1, S)
        v = v.view(G, M, V, S)
        g = (step * self.rate).view(heads)
        scanned = q.view(G, 1, K, S), k.view(G, 1, K, S), v * step.view(heads), g
        if cache.carried.buffer is None:
            read, state = state_space(*scanned, cache.carried.earlier_state(tensor).view(G, M, V, K))
            cache.carried.leave_state(tensor, state.view(1, G * M, V, K))
        else:
            held = held_of(spec, cache.carried, given)
            read = state_space_step(*scanned, held) if S == 1 else state_space(*scanned, held.whole())[0]
            leave_in(cache.carried.buffer, *scanned[1:])
        read = read + v * self.skip.view(G, M, 1, 1)
        out: Tensor = self.last(self._gated(read.view(G, M * V, 1, S), F.silu(self.gate(x))))
        return out

    def _gated(self, read: Tensor, gate: Tensor) -> Tensor:
        """What heads give, (G, C/G, 1, S), times the gate (1, C, 1, S), normed in its groups -> (1, C, 1, S)."""
        if self.out_norm is None:
            return read.view(gate.shape) * gate
        if self.spec.norm == "before_gate":
            y: Tensor = self.out_norm(read).view(gate.shape) * self.norm_scale * gate
        else:
            y = self.out_norm(read * gate.view(read.shape)).view(gate.shape) * self.norm_scale
        return y


def _channels_of(spec: Mamba2Spec) -> int:
    return spec.num_value_heads * spec.value_dim + 2 * spec.num_key_heads * spec.key_dim


def _spec_of(kind: LayerKind) -> Mamba2Spec:
    spec = kind.attention if kind.state_space is None else kind.state_space
    if not isinstance(spec, Mamba2Spec):
        raise TypeError(f"{spec.kind} attention is no Mamba-2")
    return spec
