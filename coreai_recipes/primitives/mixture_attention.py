"""A mixture of attention heads over (1, C, 1, S): each token has the queries of the few experts that its router chooses
(JetMoE; arXiv 2210.05144)."""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.attention import Attention
from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.experts import ScoreRouter, one_hot
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.registry import register
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold
from coreai_recipes.recipe.schema import MixtureAttention as MixtureSpec


class ExpertProjections(nn.Module):
    """A linear map of each expert, `weight` (E, out, in); `bias` (1, out, 1, 1), or none, is of their sum."""

    def __init__(self, num_experts: int, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_channels, in_channels), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(1, out_channels, 1, 1), requires_grad=False) if bias else None

    def forward(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """x (1 or e, in, S) -> (e, out, S), without the bias; of the experts `rows` (e,), or of all."""
        return torch.matmul(self.weight if rows is None else self.weight.index_select(0, rows), x)


@register("attention", "mixture")
class MixtureAttention(Attention):
    """x (1, C, 1, S) -> (1, C, 1, S): the sum over a token's experts e of w_e o_e(heads of q_e(x)), plus a bias.

    A token's expert at place t has a query head for each KV head g. transformers counts these heads as t * G + g, and
    so does `rotated_query`; `attend` wants the heads of one KV head side by side.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        spec = kind.attention
        if not isinstance(spec, MixtureSpec):
            raise TypeError(f"{spec.kind} attention is no mixture")
        super().__init__(kind, hidden_size, norm, folded)
        self.num_experts, self.top, self.decode = spec.num_experts, spec.router.top, spec.decode
        each = spec.num_kv_heads * spec.head_dim
        self.router = ScoreRouter(spec.router, spec.num_experts, hidden_size)
        self.q = ExpertProjections(spec.num_experts, hidden_size, each)  # type: ignore[assignment]
        self.o = ExpertProjections(spec.num_experts, each, hidden_size, spec.bias == "o")  # type: ignore[assignment]

    def gathers(self, tokens: int) -> bool:
        """Whether only the chosen experts of a call are read and computed; else all of them are."""
        return self.decode == "gathered" and tokens == 1

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        G, D, S = self.num_kv_heads, self.head_dim, x.shape[3]
        weights, chosen = self.router(x)  # (1, top, 1, S)
        rows = chosen.flatten() if self.gathers(S) else None  # (top,)
        places = None if rows is not None else one_hot(chosen, self.num_experts, x.dtype)  # (E, top, 1, S)
        q = self.q(x.squeeze(2), rows)
        if places is not None:
            q = (places * q.unsqueeze(1)).sum(0)
        q = self.rotated_query(self._turned(q.reshape(self.num_heads, D, 1, S), None, given.angles))
        q = q.view(self.top, G, D, S).transpose(0, 1).reshape(self.num_heads, D, 1, S)
        keys, values = cache.update(*self._keys_and_values(x, given.angles))  # (1, G, K, D)
        mixed = self.attend(q, keys, values, given.hidden).view(G, self.top, D, S)
        mixed = mixed.transpose(0, 1).reshape(1, self.top, G * D, S) * weights.to(x.dtype)
        mixed = mixed.squeeze(0) if places is None else (places * mixed).sum(1)  # (top, G * D, S) or (E, G * D, S)
        out: Tensor = self.o(mixed, rows).sum(0, keepdim=True).unsqueeze(2)
        return out if self.o.bias is None else out + self.o.bias
