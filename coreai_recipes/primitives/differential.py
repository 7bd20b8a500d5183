"""Attention by the difference of two softmaxes, of heads in pairs (DiffLlama; arXiv 2410.05258)."""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.attention import Attention
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.registry import register
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold


@register("attention", "differential")
class DifferentialAttention(Attention):
    """x (1, C, 1, S) -> (1, C, 1, S); a head h of the first half is paired with the head h + H/2.

    The difference is taken of weights, not of what they mix: half as many heads then read values. `lambda_full` is made
    of four vectors as it is read (`weights.computed`), and 1 - initial is in the last projection.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__(kind, hidden_size, norm, folded)
        self.lambda_full = nn.Parameter(torch.empty(1, 1, 1, 1), requires_grad=False)
        self.made_of = {"lambda_full": (4 * self.head_dim,)}
        self.pair_norm = build_norm(RMSNorm(kind="rms", eps=norm.eps, weight="none"), 2 * self.head_dim)

    def mix(self, weights: Tensor, values: Tensor, axis: int) -> Tensor:
        """(1, G/2, N, 2 D) or (1, G/2, 2 D, N): what both heads of a pair have as values, side by side."""
        first, second = weights.chunk(2, 1)
        weights = first - self.lambda_full * second
        of_first, of_second = values.chunk(2, 1)
        return torch.cat((super().mix(weights, of_first, axis), super().mix(weights, of_second, axis)), axis)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        pairs = mixed.view(self.num_heads // 2, 2 * self.head_dim, 1, x.shape[3])
        normed: Tensor = self.pair_norm(pairs)
        return normed.view(mixed.shape)
