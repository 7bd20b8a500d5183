"""Multi-head latent attention: keys and values of all heads are made of one short row a token (DeepSeek V2 and V3).

What is cached are the keys and values themselves, in the form of every other attention: num_heads * 2 * head_dim
numbers a token, values being padded to the length of keys, where the short row would be kv_rank + rope_dim (49,152 for
576 in DeepSeek V3). Nothing is computed again, and all that holds of caches elsewhere holds here.
"""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.attention import AttentionCore
from coreai_recipes.primitives.cache import Cache
from coreai_recipes.primitives.layer_inputs import Angles, LayerInputs
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.primitives.rotary import build_rotary
from coreai_recipes.recipe.schema import LatentAttention as LatentSpec
from coreai_recipes.recipe.schema import LayerKind, LayerNorm, RMSNorm, RotaryFold


@register("attention", "latent")
class LatentAttention(AttentionCore):
    """x (1, C, 1, S) -> (1, C, 1, S); a head is `nope_dim` dimensions that pass and, behind them, `rope_dim` that turn.

    The part of a key that turns is made of the hidden state itself, once for all heads.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        spec = kind.attention
        if not isinstance(spec, LatentSpec):
            raise TypeError(f"{spec.kind} attention is not latent")
        super().__init__(kind)
        has_bias = spec.bias == "qkvo"
        self.nope_dim, self.rope_dim = spec.nope_dim, spec.rope_dim
        queries = spec.num_heads * spec.head_dim
        self.q = Projection(hidden_size, queries) if spec.q_rank is None else None
        self.q_a = Projection(hidden_size, spec.q_rank, has_bias) if spec.q_rank else None
        self.q_a_norm = build_norm(spec.latent_norm, spec.q_rank) if spec.q_rank else None
        self.q_b = Projection(spec.q_rank, queries) if spec.q_rank else None
        self.kv_a = Projection(hidden_size, spec.kv_rank, has_bias)
        self.kv_a_norm = build_norm(spec.latent_norm, spec.kv_rank)
        self.k_rope = Projection(hidden_size, spec.rope_dim, has_bias)
        self.kv_b = Projection(spec.kv_rank, spec.num_heads * (spec.nope_dim + spec.value_dim))
        self.o = Projection(spec.num_heads * spec.value_dim, hidden_size, has_bias)
        self.rotary = build_rotary(kind.rotary, spec.rope_dim, folded)
        self.rotated_query, self.rotated_key = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        H, D, S = self.num_heads, self.head_dim, x.shape[3]
        q = self._queries(x).view(H, D, 1, S)
        passing, turning = q.narrow(1, 0, self.nope_dim), q.narrow(1, self.nope_dim, self.rope_dim)
        q = self.rotated_query(torch.cat((passing, self._turned(turning, given.angles)), 1))
        keys, values = cache.update(*self._keys_and_values(x, given.angles))  # (1, H, K, D)
        out: Tensor = self.o(self.attend(q, keys, values, given.hidden))
        return out

    def _queries(self, x: Tensor) -> Tensor:
        if self.q is not None:
            return self.q(x)  # type: ignore[no-any-return]
        return self.q_b(self.q_a_norm(self.q_a(x)))  # type: ignore[misc, no-any-return]

    def _keys_and_values(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """The call's own keys and values, each (H, S, D), values with zeros behind them."""
        H, D, S = self.num_heads, self.head_dim, x.shape[3]
        both = self.kv_b(self.kv_a_norm(self.kv_a(x))).view(H, self.nope_dim + self.value_dim, 1, S)
        passing, v = both.narrow(1, 0, self.nope_dim), both.narrow(1, self.nope_dim, self.value_dim)
        turned = self._turned(self.k_rope(x), angles).expand(H, self.rope_dim, 1, S)
        k = self.rotated_key(torch.cat((passing, turned), 1))
        if self.value_dim < D:
            v = torch.cat((v, torch.zeros(H, D - self.value_dim, 1, S, dtype=v.dtype, device=v.device)), 1)
        return k.view(H, D, S).transpose(1, 2), v.reshape(H, D, S).transpose(1, 2)

    def _turned(self, x: Tensor, angles: Angles) -> Tensor:
        """x (N, R, 1, S) turned; interleaved pairs leave as transformers has them: all first ones, all second ones."""
        x = self.rotary.turn(x, angles)
        if self.rotary.pairing == "interleaved":
            x = x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)  # type: ignore[no-untyped-call]
        return x
