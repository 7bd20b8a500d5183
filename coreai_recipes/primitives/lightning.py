"""Lightning attention in the place of attention (MiniMax; arXiv 2401.04658): a matrix for each head, which fades by a
factor of the head and of the layer alone."""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.buffer import leave_in
from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.carried import Carried, CarriedTensor
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.recurrence import held_of, matrix_of
from coreai_recipes.primitives.registry import register
from coreai_recipes.primitives.state_space import state_space, state_space_step
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold
from coreai_recipes.recipe.schema import Lightning as LightningSpec


@register("attention", "lightning")
class Lightning(nn.Module):
    """x (1, C, 1, S) -> (1, C, 1, S).

    It is Mamba-2's state space with steps of one. `fading` is the logarithm of what a head keeps of its matrix at each
    token: no checkpoint needs to have it (`weights.computed`).
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__()
        self.spec = spec = _spec_of(kind)
        width = spec.num_value_heads * spec.value_dim
        self.query, self.key = Projection(hidden_size, width), Projection(hidden_size, width)
        self.value, self.gate = Projection(hidden_size, width), Projection(hidden_size, width)
        self.activation = ACTIVATIONS[spec.activation]
        self.fading = nn.Parameter(torch.empty(1, spec.num_value_heads, 1, 1), requires_grad=False)
        eps = norm.eps if spec.eps is None else spec.eps
        self.out_norm = build_norm(RMSNorm(kind="rms", eps=eps), width)
        self.last = Projection(width, hidden_size)

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[CarriedTensor, ...]:
        """Each head's matrix."""
        return (matrix_of(_spec_of(kind)),)

    @classmethod
    def row_parts(cls, kind: LayerKind) -> dict[str, int]:
        """The columns of a buffer's rows: a token's keys, what it adds there, and how much each head keeps of what was
        before, as a logarithm."""
        spec = _spec_of(kind)
        width = spec.num_value_heads * spec.value_dim
        return {"keys": width, "added": width, "decays": spec.num_value_heads}

    @classmethod
    def commit(cls, kind: LayerKind, carried: Carried, given: LayerInputs) -> None:
        """Leave what N layers carry, (N, ...), as it is behind the rows that `given` says are held."""
        spec, (matrix,) = _spec_of(kind), cls.states(kind)
        carried.leave_state(matrix, held_of(spec, carried, given).whole().view(-1, *matrix.shape))

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        H, D, S = self.spec.num_value_heads, self.spec.value_dim, x.shape[3]
        q, k, v = (self.activation(part(x)).view(H, 1, D, S) for part in (self.query, self.key, self.value))
        g = self.fading.view(H, 1, 1, 1).expand(H, 1, 1, S)
        if given.padding is not None:  # it neither writes nor lets anything fade
            padding = given.padding.view(1, 1, 1, S) > 0
            v, g = v.masked_fill(padding, 0.0), g.masked_fill(padding, 0.0)
        matrix = matrix_of(self.spec)
        if cache.carried.buffer is None:
            read, state = state_space(q, k, v, g, cache.carried.earlier_state(matrix).view(H, 1, D, D))
            cache.carried.leave_state(matrix, state.view(1, *matrix.shape))
        else:
            held = held_of(self.spec, cache.carried, given)
            read = state_space_step(q, k, v, g, held) if S == 1 else state_space(q, k, v, g, held.whole())[0]
            leave_in(cache.carried.buffer, k, v, g)
        y = self.out_norm(read.view(1, H * D, 1, S)) * torch.sigmoid(self.gate(x))
        out: Tensor = self.last(y)
        return out


def _spec_of(kind: LayerKind) -> LightningSpec:
    spec = kind.attention
    if not isinstance(spec, LightningSpec):
        raise TypeError(f"{spec.kind} attention is no lightning attention")
    return spec
