"""Linear attention by the gated delta rule in the place of attention: what is kept of all positions is one matrix."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.buffer import leave_in
from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.carried import Carried, CarriedTensor
from coreai_recipes.primitives.causal_conv import ROWS, CausalConvolution, tail_of, tail_since
from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.delta_rule import delta_rule, delta_step
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.recurrence import held_of, matrix_of
from coreai_recipes.primitives.registry import register
from coreai_recipes.primitives.softplus import softplus
from coreai_recipes.recipe.schema import GatedDelta as GatedDeltaSpec
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold

UNIT_EPS = 1e-6  # added to the sum of squares of a query or a key, not to their mean


@register("attention", "gated_delta")
class GatedDelta(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S).

    Each value head has a factor of its own for what its state keeps, exp(rate * softplus(decay(x) + decay_bias)), or as
    many as there are dimensions of its keys, with one rate.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__()
        self.spec = spec = _spec_of(kind)
        keys, values = spec.num_key_heads * spec.key_dim, spec.num_value_heads * spec.value_dim
        self.query, self.key = Projection(hidden_size, keys), Projection(hidden_size, keys)
        self.value = Projection(hidden_size, values)
        self.gate_down = None if spec.gate_rank is None else Projection(hidden_size, spec.gate_rank)
        self.gate = Projection(spec.gate_rank or hidden_size, values)
        self.beta = Projection(hidden_size, spec.num_value_heads)
        self.decay_down = None if spec.decay_rank is None else Projection(hidden_size, spec.decay_rank)
        self.decay = Projection(spec.decay_rank or hidden_size, _decays_of(spec))
        self.activation = ACTIVATIONS[spec.activation]
        self.conv = CausalConvolution(2 * keys + values, spec.taps, False)
        self.decay_bias = nn.Parameter(torch.empty(1, _decays_of(spec), 1, 1), requires_grad=False)
        self.rate = nn.Parameter(torch.empty(1, spec.num_value_heads, 1, 1), requires_grad=False)
        unit = RMSNorm(kind="rms", eps=UNIT_EPS / spec.key_dim, weight="none")
        self.unit = build_norm(unit, spec.key_dim)
        root_eps = (norm.eps if spec.eps is None else spec.eps) ** 0.5
        self.query_scale, exact = _exact_scale(spec.key_dim**-0.5, root_eps)
        self.out_norm = build_norm(RMSNorm(kind="rms", eps=exact**2), spec.value_dim)
        self.last = Projection(values, hidden_size)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[CarriedTensor, ...]:
        """The convolution's inputs at the last positions, and each value head's matrix."""
        spec = _spec_of(kind)
        channels = 2 * spec.num_key_heads * spec.key_dim + spec.num_value_heads * spec.value_dim
        return tail_of(channels, spec.taps), matrix_of(spec)

    @classmethod
    def row_parts(cls, kind: LayerKind) -> dict[str, int]:
        """The columns of a buffer's rows: the convolution's inputs, a token's keys, what it adds there, and how much
        is kept of what was before, as a logarithm."""
        spec = _spec_of(kind)
        keys, values = spec.num_key_heads * spec.key_dim, spec.num_value_heads * spec.value_dim
        return {ROWS: 2 * keys + values, "keys": keys, "added": values, "decays": _decays_of(spec)}

    @classmethod
    def commit(cls, kind: LayerKind, carried: Carried, given: LayerInputs) -> None:
        """Leave what N layers carry, (N, ...), as it is behind the rows that `given` says are held."""
        spec = _spec_of(kind)
        tail, matrix = cls.states(kind)
        carried.leave(tail, tail_since(carried.earlier(tail), carried.rows, given.before))
        whole = held_of(spec, carried, given).whole()
        carried.leave_state(matrix, whole.view(-1, *matrix.shape))

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        spec, S = self.spec, x.shape[3]
        G, M, K, V = spec.num_key_heads, spec.num_value_heads // spec.num_key_heads, spec.key_dim, spec.value_dim
        mixed = self.activation(self.conv(torch.cat((self.query(x), self.key(x), self.value(x)), 1), given, cache))
        q, k, v = torch.split(mixed, [G * K, G * K, G * M * V], 1)
        # Queries and keys are K^0.5 long here, for the norm takes a mean. A state over K^0.5 and betas over K make up
        # for it, and a query's own factor K^-0.5 is then left over.
        q = (self.unit(q.view(G, K, 1, S)) * self.query_scale).view(G, 1, K, S)
        k = self.unit(k.view(G, K, 1, S)).view(G, 1, K, S)
        beta = scaled(torch.sigmoid(self.beta(x)), (2.0 if spec.negative else 1.0) / K)
        g = self._fading(x)
        if given.padding is not None:  # it neither writes nor lets anything fade
            padding = given.padding.view(1, 1, 1, S) > 0
            beta, g = beta.masked_fill(padding, 0.0), g.masked_fill(padding, 0.0)
        tensor, heads = matrix_of(spec), (G, M, 1, S)
        g = g.view((G, 1, K, S) if spec.fades_by_column else heads)
        given_to_rule = q, k, v.view(G, M, V, S), g, beta.view(heads)
        if cache.carried.buffer is None:
            state = cache.carried.earlier_state(tensor).view(G, M, V, K)
            read, state, _ = delta_rule(*given_to_rule, state)
            cache.carried.leave_state(tensor, state.view(1, G * M, V, K))
        else:
            held, buffer = held_of(spec, cache.carried, given), cache.carried.rows
            if S == 1:
                read, u = delta_step(*given_to_rule, held)
            else:
                read, _, u = delta_rule(*given_to_rule, held.whole())
            leave_in(buffer, k, u, g)
        gate = self.gate(x if self.gate_down is None else self.gate_down(x))
        gate = F.silu(gate) if spec.gate == "silu" else torch.sigmoid(gate)
        y = self.out_norm(read.view(G * M, V, 1, S)) * gate.view(G * M, V, 1, S)
        out: Tensor = self.last(y.view(1, G * M * V, 1, S))
        return out

    def _fading(self, x: Tensor) -> Tensor:
        """Logarithms of what is kept of what was before x (1, C, 1, S), (1, G * M, 1, S) or (1, G * K, 1, S)."""
        g = softplus(self.decay(x if self.decay_down is None else self.decay_down(x)) + self.decay_bias)
        if not self.spec.fades_by_column:
            return g * self.rate
        G, K = self.spec.num_key_heads, self.spec.key_dim
        return (g.view(G, K, 1, -1) * self.rate.view(G, 1, 1, 1)).view(g.shape)


def _decays_of(spec: GatedDeltaSpec) -> int:
    """How many factors a token has."""
    return spec.num_key_heads * spec.key_dim if spec.fades_by_column else spec.num_value_heads


def _exact_scale(scale: float, root_eps: float) -> tuple[float, float]:
    """What queries are multiplied by, near `scale`, and the root of eps that then belongs to what heads give, both of
    them float16 numbers. Heads give as little as the root of eps, and in float16 that is off by 1e-4."""
    of_queries = (scale * np.arange(1024, 2048) / 1024).astype(np.float16).astype(np.float64)
    wanted = root_eps * of_queries / scale
    exact = wanted.astype(np.float16).astype(np.float64)
    best = int(np.abs(exact / wanted - 1).argmin())
    return float(of_queries[best]), float(exact[best])


def _spec_of(kind: LayerKind) -> GatedDeltaSpec:
    spec = kind.attention
    if not isinstance(spec, GatedDeltaSpec):
        raise TypeError(f"{spec.kind} attention is no gated delta rule")
    return spec
