"""Grouped-query attention in the engine's layout: channels first, keys beside queries, no tensor above rank 4."""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.cache import Cache, KeptRows
from coreai_recipes.primitives.carried import Carried, CarriedTensor
from coreai_recipes.primitives.constants import clipped, scaled
from coreai_recipes.primitives.layer_inputs import Angles, LayerInputs
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import primitive, register
from coreai_recipes.primitives.rotary import build_rotary
from coreai_recipes.primitives.softplus import softplus
from coreai_recipes.recipe.schema import (
    RGLRU,
    GatedDelta,
    LatentAttention,
    LayerKind,
    LayerNorm,
    Lightning,
    QKNorm,
    RMSNorm,
    RotaryFold,
)
from coreai_recipes.recipe.schema import NoAttention as NoAttentionSpec
from coreai_recipes.recipe.schema import SlidingAttention as SlidingSpec


class AttentionCore(nn.Module):
    """What queries do with keys and values, however they are made."""

    def __init__(self, kind: LayerKind) -> None:
        super().__init__()
        spec = kind.attention
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.value_dim = getattr(spec, "value_dim", None) or spec.head_dim
        self.scale, self.softcap = kind.score_scale, spec.softcap
        self.sinks = nn.Parameter(torch.empty(spec.num_heads), requires_grad=False) if spec.sinks else None

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[KeptRows, ...]:
        """What a layer of `kind` keeps between calls: its keys and values, or nothing where it reads another kind's."""
        spec = kind.attention
        if spec.shares_kv_with is not None:
            return ()
        window = spec.window if isinstance(spec, SlidingSpec) else None
        return (KeptRows(spec.num_kv_heads, spec.head_dim, window),)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """q (H, D, 1, S), keys (1, G, K, D) and values (1, G, K, E) -> (1, H * E, 1, S), E being `value_dim` at most.

        The mask says how scores lie. (1, K, 1, S) or (G, K, H/G, S): keys are channels and queries the last axis, which
        many of them fill. (1, 1, 1, K) or (1, G, H/G, K): the keys of one query are the last axis, which the engine
        pads to 64 bytes, and one query would fill a 32nd of it.
        """
        attend = self._attend_keys_last if mask.shape[3] != q.shape[3] else self._attend_queries_last
        return attend(q, keys, values, mask)

    def _attend_keys_last(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        G, D = self.num_kv_heads, self.head_dim
        q = scaled(q.view(1, G, self.num_heads // G, D), self.scale)
        scores = torch.matmul(q, keys.transpose(2, 3))  # (1, G, H/G, K)
        mixed = self.mix(self._weights(scores, mask, 3), values, 3)  # (1, G, H/G, E)
        return mixed.reshape(1, -1, 1, 1)

    def _attend_queries_last(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        G, D, S = self.num_kv_heads, self.head_dim, q.shape[3]
        shared = self.num_heads // G  # query heads of each KV head
        q = scaled(q, self.scale).view(G, shared, D, S).transpose(1, 2).reshape(1, G, D, shared * S)
        scores = torch.matmul(keys, q).view(G, -1, shared, S)  # (G, K, H/G, S)
        weights = self._weights(scores, mask, 1).view(1, G, -1, shared * S)
        mixed = self.mix(weights, values, 2)  # (1, G, E, H/G * S)
        return mixed.reshape(mixed.shape[1], -1, shared, S).transpose(1, 2).reshape(1, -1, 1, S)

    def mix(self, weights: Tensor, values: Tensor, axis: int) -> Tensor:
        """values (1, G, K, E) by their weights, dimensions being `axis` of what is given: (1, G, N, K) -> (1, G, N, E),
        or (1, G, K, N) -> (1, G, E, N); without what a cache adds to values to make them as long as keys."""
        mixed = torch.matmul(weights, values) if axis == 3 else torch.matmul(values.transpose(2, 3), weights)
        return mixed if self.value_dim == mixed.shape[axis] else mixed.narrow(axis, 0, self.value_dim)

    def _weights(self, scores: Tensor, mask: Tensor, axis: int) -> Tensor:
        """The softmax over the keys, which are `axis` of scores (G, K, H/G, S) or (1, G, H/G, K)."""
        if self.softcap is not None:
            scores = scaled(torch.tanh(scaled(scores, 1 / self.softcap)), self.softcap)
        scores = scores + mask
        if self.sinks is None:
            return torch.softmax(scores, axis)
        # a head's sink is a key without a value: all that it leaves is its part of the maximum and of the sum
        sinks = self.sinks.view((-1, 1, scores.shape[2], 1) if axis == 1 else (1, -1, scores.shape[2], 1))
        highest = torch.maximum(scores.amax(axis, keepdim=True), sinks)
        weights = torch.exp(scores - highest)
        return weights / (weights.sum(axis, keepdim=True) + torch.exp(sinks - highest))


class Attention(AttentionCore):
    """x (1, C, 1, S) -> (1, C, 1, S).

    `norm` is the model's norm, from which the q and k norms take what they do not say. A layer that shares the cache of
    another has no k and v, and reads what the other has left. `rotated_query` and `rotated_key` pass q (H, D, 1, S) and
    k (G, D, 1, S) through untouched: places for a hook to look.
    """

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__(kind)
        spec = kind.attention
        if isinstance(spec, LatentAttention | GatedDelta | Lightning | RGLRU | NoAttentionSpec):
            raise TypeError(f"{spec.kind} attention makes its keys otherwise")
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        given = spec.num_heads * self.value_dim
        owns, has_bias = spec.shares_kv_with is None, spec.bias in ("qkv", "qkvo")
        self.clip = spec.clip
        self.norm_over = spec.qk_norm.over if spec.qk_norm else None
        self.norm_after_rotary = spec.qk_norm is not None and spec.qk_norm.after_rotary
        v_norm = RMSNorm(kind="rms", eps=norm.eps, weight="none")
        self.q = Projection(hidden_size, queries, has_bias)
        self.q_norm = self._build_norm(spec.qk_norm, spec.num_heads, norm) if spec.qk_norm else None
        self.k = Projection(hidden_size, keys, has_bias) if owns else None
        self.k_norm = self._build_norm(spec.qk_norm, spec.num_kv_heads, norm) if owns and spec.qk_norm else None
        self.value_scale = spec.value_scale
        self.v = (
            Projection(hidden_size, spec.num_kv_heads * self.value_dim, has_bias) if owns and not spec.k_eq_v else None
        )
        self.v_norm = build_norm(v_norm, self.value_dim) if owns and spec.v_norm else None
        gates = None if spec.output_gate is None else spec.num_heads if spec.output_gate.of == "head" else given
        self.output_gate = Projection(hidden_size, gates) if gates else None
        self.gate_activation = spec.output_gate.activation if spec.output_gate else None
        self.out_norm = build_norm(spec.out_norm, given) if spec.out_norm else None
        self.o = Projection(given, hidden_size, spec.bias in ("qkvo", "o"))
        self.rotary = build_rotary(kind.rotary, spec.head_dim, folded)
        self.rotated_query, self.rotated_key = nn.Identity(), nn.Identity()

    def _build_norm(self, spec: QKNorm, heads: int, norm: RMSNorm | LayerNorm) -> nn.Module:
        """The norm of queries or keys, of which there are `heads`."""
        if spec.over == "width":
            return build_norm(spec.norm or norm, heads * self.head_dim)
        return build_norm(spec.norm or norm, self.head_dim, heads if spec.over == "each_head" else None)

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        angles = given.angles
        q = self._turned(self.q(x).view(self.num_heads, self.head_dim, 1, x.shape[3]), self.q_norm, angles)
        if given.temperature is not None:
            q = q * given.temperature
        q = self.rotated_query(q)
        keys, values = (
            cache.read() if self.k is None else cache.update(*self._keys_and_values(x, angles))
        )  # (1, G, K, D)
        mixed = self._gated(self.attend(q, keys, values, given.hidden), x)
        out: Tensor = self.o(self.finish(mixed if self.out_norm is None else self.out_norm(mixed), x))
        return out

    def _gated(self, mixed: Tensor, x: Tensor) -> Tensor:
        """What the heads give, (1, H * D, 1, S), times their gates of x (1, C, 1, S)."""
        if self.output_gate is None:
            return mixed
        gate = self.output_gate(x)
        gate = (
            softplus(gate) if self.gate_activation == "softplus" else torch.sigmoid(gate)
        )  # (1, H, 1, S) or (1, H * D, 1, S)
        if gate.shape[1] == mixed.shape[1]:
            return mixed * gate
        H, D, S = self.num_heads, self.value_dim, x.shape[3]
        return (mixed.view(H, D, 1, S) * gate.view(H, 1, 1, S)).view(1, H * D, 1, S)

    def finish(self, mixed: Tensor, x: Tensor) -> Tensor:
        """What the heads give, (1, H * D, 1, S), on its way to the last projection: where a plugin's attention gates it
        by x (1, C, 1, S)."""
        return mixed

    def _keys_and_values(self, x: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """The call's own keys and values, each (G, S, D)."""
        G, D, S = self.num_kv_heads, self.head_dim, x.shape[3]
        k = self.k(x).view(G, D, 1, S)  # type: ignore[misc]
        # where K = V it is the projection itself that is shared: before the norm, before the rotary (Gemma 4)
        v = self._clipped(k if self.v is None else self.v(x).view(G, self.value_dim, 1, S))
        if self.v_norm is not None:
            v = self.v_norm(v)
        v = scaled(v, self.value_scale)
        if self.value_dim < D:  # the cache has one length for both
            v = torch.cat((v, torch.zeros(G, D - self.value_dim, 1, S, dtype=v.dtype, device=v.device)), 1)
        k = self.rotated_key(self._turned(k, self.k_norm, angles))
        return k.view(G, D, S).transpose(1, 2), v.view(G, D, S).transpose(1, 2)

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else clipped(x, self.clip)

    def _turned(self, x: Tensor, norm: nn.Module | None, angles: Angles) -> Tensor:
        """Queries or keys (N, D, 1, S), normed and turned, in the recipe's order; cut off before they turn."""
        if norm is not None and not self.norm_after_rotary:
            x = self._normed(x, norm)
        x = self.rotary.turn(self._clipped(x), angles)
        return self._normed(x, norm) if norm is not None and self.norm_after_rotary else x

    def _normed(self, x: Tensor, norm: nn.Module) -> Tensor:
        if self.norm_over == "width":
            flat: Tensor = norm(x.reshape(1, -1, 1, x.shape[3]))
            return flat.view(x.shape)
        return norm(x)  # type: ignore[no-any-return]


@register("attention", "full")
class FullAttention(Attention):
    """Every earlier position is seen."""


@register("attention", "sliding")
class SlidingAttention(Attention):
    """The last `window` positions are seen; the mask and the cache make the difference, the arithmetic is the same."""


@register("attention", "chunked")
class ChunkedAttention(Attention):
    """The earlier positions of the query's chunk are seen; the mask makes the difference."""


@register("attention", "none")
class NoAttention(nn.Module):
    """Nothing is added to the stream; a layer that has none does not ask."""

    def __init__(
        self, kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
    ) -> None:
        super().__init__()

    @classmethod
    def states(cls, kind: LayerKind) -> tuple[KeptRows | CarriedTensor, ...]:
        """Nothing is kept."""
        return ()

    def forward(self, x: Tensor, given: LayerInputs, cache: Cache) -> Tensor:
        return torch.zeros_like(x)


def build_attention(
    kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm, folded: RotaryFold | None = None
) -> nn.Module:
    """The registered attention of `kind`; `folded` turns heads whose dimensions stand in that order."""
    return primitive("attention", kind.attention.kind)(kind, hidden_size, norm, folded)


def build_state_space(kind: LayerKind, hidden_size: int, norm: RMSNorm | LayerNorm) -> nn.Module | None:
    """The registered primitive of what stands beside the attention of `kind`, if anything does."""
    spec = kind.state_space
    return None if spec is None else primitive("attention", spec.kind)(kind, hidden_size, norm)


def rows_of_kind(kind: LayerKind) -> KeptRows | None:
    """The keys and values that the registered primitive of `kind` declares to keep, if any."""
    return next((kept for kept in _states_of_kind(kind) if isinstance(kept, KeptRows)), None)


def carried_of_kind(kind: LayerKind) -> tuple[CarriedTensor, ...]:
    """What the registered primitive of `kind` declares to carry from call to call."""
    return tuple(kept for kept in _states_of_kind(kind) if isinstance(kept, CarriedTensor))


def row_parts_of_kind(kind: LayerKind) -> dict[str, int]:
    """The columns of the rows that the registered primitive of `kind` keeps in a buffer, by name; none where it cannot
    go back."""
    declare = getattr(_mixers_of(kind)[-1], "row_parts", None)
    return {} if declare is None else dict(declare(kind))


def commit_kind(kind: LayerKind, carried: Carried, given: LayerInputs) -> None:
    """Leave what the layers of a kind carry as the rows that are held make it."""
    _mixers_of(kind)[-1].commit(kind, carried, given)  # type: ignore[attr-defined]


def _mixers_of(kind: LayerKind) -> list[type[nn.Module]]:
    """The registered primitives that mix positions: attention, or what stands in its place, and last what stands
    beside it, which then alone carries anything."""
    beside = [] if kind.state_space is None else [kind.state_space.kind]
    return [primitive("attention", name) for name in (kind.attention.kind, *beside)]


def _states_of_kind(kind: LayerKind) -> tuple[KeptRows | CarriedTensor, ...]:
    # one of a plugin that says nothing keeps keys and values
    found = (getattr(mixer, "states", AttentionCore.states)(kind) for mixer in _mixers_of(kind))
    return tuple(state for states in found for state in states)
