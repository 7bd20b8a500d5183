"""Mixtures of experts over (1, C, 1, S): each token passes through the few that its router chooses."""

from typing import Any

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.mlp import ACTIVATIONS, GatedMLP, PlainMLP
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import primitive, register
from coreai_recipes.recipe import schema
from coreai_recipes.recipe.schema import LayerNorm, RMSNorm

# Scores are taken down by this where they do not count (their group is not chosen): more than any score and its bias.
FAR_BELOW = 1e4
MOST_IN_FLOAT16 = 2048  # it holds every whole number up to this
SMALLEST = 2.0**-24  # of a sum by which weights are divided, so that scores that are all zero give no NaN


class Mixture(nn.Module):
    """The experts of a mixture: the sum over a token's experts e of w_e down_e(activation(gate_e(n)) * up_e(n)).

    `gate_up` (E, 2I, C) has the I rows of gate before those of up and `down` is (E, C, I). Experts without a gate have
    `up` (E, I, C) in its place, and are down_e(activation(up_e(n))).
    """

    def __init__(self, spec: schema.Experts | schema.MixtureMLP, hidden_size: int) -> None:
        super().__init__()
        E, width = spec.num_experts, spec.intermediate_size
        latent = spec.latent_size if isinstance(spec, schema.MixtureMLP) else None
        size = latent or hidden_size
        self.num_experts, self.top, self.decode = E, spec.router.top, spec.decode
        self.weighs_input = isinstance(spec, schema.MixtureMLP) and spec.router.weighs == "input"
        self.gated = isinstance(spec, schema.Experts) or spec.gated
        rows = 2 * width if self.gated else width
        first = nn.Parameter(torch.empty(E, rows, size), requires_grad=False)
        self.register_parameter("gate_up" if self.gated else "up", first)
        self.down = nn.Parameter(torch.empty(E, size, width), requires_grad=False)
        self.activation = ACTIVATIONS[spec.activation]
        self.clamp = spec.clamp if isinstance(spec, schema.MixtureMLP) else None
        has_bias = isinstance(spec, schema.MixtureMLP) and spec.bias
        self.gate_up_bias = nn.Parameter(torch.empty(E, 2 * width), requires_grad=False) if has_bias else None
        self.down_bias = nn.Parameter(torch.empty(E, size), requires_grad=False) if has_bias else None

    @property
    def first(self) -> Tensor:
        """What reads the hidden state, of all experts: `gate_up`, or `up` where they have no gate."""
        found: Tensor = getattr(self, "gate_up" if self.gated else "up")
        return found

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor, expert_scale: Tensor | None = None) -> Tensor:
        """x (1, C, 1, S), `weights` and numbers of the `chosen` experts (1, top, 1, S) -> (1, C, 1, S); `expert_scale`
        (E, 1, 1) is a factor of each expert's weight."""
        n = x.squeeze(2)  # (1, C, S)
        mixed = self._gather if self.gathers(x.shape[3]) else self._take_all
        return mixed(n, weights, chosen, expert_scale).unsqueeze(2)

    def gathers(self, tokens: int) -> bool:
        """Whether only the chosen experts of a call are read and computed; else all of them are."""
        return self.decode == "gathered" and tokens == 1

    def _gather(self, n: Tensor, weights: Tensor, chosen: Tensor, expert_scale: Tensor | None) -> Tensor:
        """One token: the weights of its experts alone are read."""
        rows = chosen.flatten()  # (top,)
        weights = weights.squeeze(0)  # (top, 1, 1)
        if expert_scale is not None:
            weights = weights * expert_scale.index_select(0, rows)
        first, down = (part.index_select(0, rows) for part in (self.first, self.down))
        biases = (part if part is None else part.index_select(0, rows) for part in (self.gate_up_bias, self.down_bias))
        return self._sum(n, weights, first, down, *biases)

    def _take_all(self, n: Tensor, weights: Tensor, chosen: Tensor, expert_scale: Tensor | None) -> Tensor:
        """Several tokens: every expert computes every token, with weight zero where it was not chosen."""
        spread = (one_hot(chosen, self.num_experts, n.dtype) * weights).sum(1)  # (E, 1, S)
        if expert_scale is not None:
            spread = spread * expert_scale
        return self._sum(n, spread, self.first, self.down, self.gate_up_bias, self.down_bias)

    def _sum(
        self,
        n: Tensor,
        weights: Tensor,
        first: Tensor,
        down: Tensor,
        gate_up_bias: Tensor | None,
        down_bias: Tensor | None,
    ) -> Tensor:
        """The weighted sum of the given experts, (1, C, S); weights (e, 1, S), first (e, 2I or I, C) and
        down (e, C, I)."""
        both = torch.matmul(first, n * weights if self.weighs_input else n)
        if gate_up_bias is not None:
            both = both + gate_up_bias.unsqueeze(2)
        # before `down`, where a value is not yet a sum of I products: an unchosen expert cannot overflow there
        hidden = self._gated(*both.chunk(2, dim=1)) if self.gated else self.activation(both)  # (e, I, S)
        if not self.weighs_input:  # else one that was not chosen reads zeros, and gives zeros
            hidden = hidden * weights
        out = torch.matmul(down, hidden)
        if down_bias is not None:
            out = out + down_bias.unsqueeze(2) * weights
        return out.sum(0, keepdim=True)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.clamp is None:
            return self.activation(gate) * up
        limit = self.clamp.limit
        gate = torch.minimum(gate, torch.tensor(limit, dtype=gate.dtype, device=gate.device))
        return gate * torch.sigmoid(scaled(gate, self.clamp.alpha)) * (up.clamp(-limit, limit) + 1)


def one_hot(chosen: Tensor, num_experts: int, dtype: torch.dtype) -> Tensor:
    """(E, top, 1, S): 1 where expert e is the one at a place of `chosen` (1, top, 1, S)."""
    return _is_among(chosen, torch.arange(num_experts, device=chosen.device).view(-1, 1, 1, 1)).to(dtype)


def _is_among(chosen: Tensor, numbers: Tensor) -> Tensor:
    """Whether they are equal, in float16 where that can tell: whole numbers are not the engine's."""
    return numbers.float() == chosen.float() if numbers.numel() <= MOST_IN_FLOAT16 else numbers == chosen


def _values_of(values: Tensor, chosen: Tensor) -> Tensor:
    """values (1, E, 1, S) of the `chosen` experts, both (1, top, 1, S): a gather of what a call computes would leave
    the engine, and a sum of one value and zeros is that value."""
    E, S = values.shape[1], values.shape[3]
    return (one_hot(chosen, E, values.dtype) * values.view(E, 1, 1, S)).sum(0, keepdim=True)


def mix_sparsely(logits: Tensor, chosen: Tensor, jitter: float) -> Tensor:
    """The weight of each chosen expert, (1, top, 1, S), of logits (1, E, 1, S): its part of the softmax among those
    whose logits are near its own and that were not chosen before it (transformers' sparsemixer, arXiv 2409.12136)."""
    E, S = logits.shape[1], logits.shape[3]
    of_all = logits.view(E, 1, 1, S)
    is_chosen = one_hot(chosen, E, logits.dtype)  # (E, top, 1, S)
    best = (is_chosen * of_all).sum(0, keepdim=True)  # (1, top, 1, S)
    is_near = (best - of_all <= 2 * jitter * torch.maximum(of_all.abs(), best)).to(logits.dtype)
    before = [torch.zeros_like(is_chosen[:, :1])]
    for rank in range(1, chosen.shape[1]):
        before.append(before[-1] + is_chosen[:, rank - 1 : rank])
    is_among = is_near * (1 - torch.cat(before, 1))  # (E, top, 1, S)
    parts = torch.softmax(of_all + (is_among - 1) * FAR_BELOW, 0)
    return (is_chosen * parts).sum(0, keepdim=True)


class Router(nn.Module):
    """Which `top` of E experts a token takes, and with what weights: softmax(proj(rms(x) * scale * C^-0.5)).

    transformers takes the softmax of all E logits and divides the best `top` by their sum, which is the softmax of the
    best logits alone. That is what is taken here: one of 128 probabilities has few bits left in float16, a logit has
    all of them.
    """

    def __init__(self, hidden_size: int, num_experts: int, top: int, eps: float) -> None:
        super().__init__()
        self.top = top
        self.root_size = hidden_size**-0.5
        self.norm = build_norm(RMSNorm(kind="rms", eps=eps, weight="none"), hidden_size)
        self.scale = nn.Parameter(torch.empty(1, hidden_size, 1, 1), requires_grad=False)
        self.proj = Projection(hidden_size, num_experts)
        self.expert_scale = nn.Parameter(torch.empty(num_experts, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (1, C, 1, S) -> weights, which sum to one, and numbers of the chosen experts, both (1, top, 1, S).

        `expert_scale` has still to be multiplied in. The weights are of x's type where transformers' are float32:
        float32 within a float16 program falls off the engine, and a softmax of a few logits does not need it.
        """
        # exactly `top` of them even where logits are equal, which a threshold could not promise
        best, chosen = torch.topk(self.logits(x), self.top, dim=1)
        return torch.softmax(best, 1), chosen

    def logits(self, x: Tensor) -> Tensor:
        """By which experts are chosen, (1, E, 1, S)."""
        logits: Tensor = self.proj(scaled(self.norm(x) * self.scale, self.root_size))
        return logits

    def values(self, logits: Tensor) -> Tensor:
        """What experts are chosen by."""
        return logits

    def weigh(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """The weights of given experts, as `forward` gives those of the best."""
        return torch.softmax(_values_of(logits, chosen), 1)


@register("experts", "softmax")
class Experts(Mixture):
    """x (1, C, 1, S), the residual stream before the MLP, -> (1, C, 1, S), to be added to the MLP's own branch.

    post_norm(mix(pre_norm(x), router(x))), as in transformers' Gemma4TextDecoderLayer: pre_feedforward_layernorm_2,
    router and experts, post_feedforward_layernorm_2.

    Args:
        norm: the model's norm, of which `post_norm` is one.
        stream_norm: the same for what reads the residual stream, `pre_norm` and the router: where the stream is scaled
            down its eps is too.
    """

    def __init__(
        self, spec: schema.Experts, hidden_size: int, norm: RMSNorm | LayerNorm, stream_norm: RMSNorm | LayerNorm
    ) -> None:
        super().__init__(spec, hidden_size)
        self.pre_norm = build_norm(stream_norm, hidden_size)
        self.router = Router(hidden_size, spec.num_experts, spec.router.top, stream_norm.eps)
        self.post_norm = build_norm(norm, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x)
        out: Tensor = self.post_norm(self.mix(self.pre_norm(x), weights, chosen, self.router.expert_scale))
        return out


class ScoreRouter(nn.Module):
    """Which `top` of E experts a token takes, and with what weights, by scores of proj(x).

    `bias` (1, E, 1, 1), where there is one for the choice, is added to the scores by which experts are chosen and not
    to those by which they are weighed. Weights are of x's type, as in `Router`.
    """

    def __init__(self, spec: schema.ExpertRouter, num_experts: int, hidden_size: int) -> None:
        super().__init__()
        self.spec, self.num_experts = spec, num_experts
        self.proj = Projection(hidden_size, num_experts, spec.bias == "logits")
        bias = torch.empty(1, num_experts, 1, 1)
        self.bias = nn.Parameter(bias, requires_grad=False) if spec.bias in ("choice", "choice_of_logits") else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (1, C, 1, S) -> weights and numbers of the chosen experts, both (1, top, 1, S)."""
        logits = self.logits(x)
        if self._weighs_the_best_logits:
            best, chosen = torch.topk(logits, self.spec.top, dim=1)
            return scaled(torch.softmax(best, 1), self.spec.scale), chosen
        if self.spec.jitter is not None:
            chosen = torch.topk(logits, self.spec.top, dim=1)[1]
            return self.weigh(logits, chosen), chosen
        scores = self._scores(logits)
        chosen = torch.topk(self._to_choose_by(logits, scores), self.spec.top, dim=1)[1]
        return self._weigh_by(scores, chosen), chosen

    def logits(self, x: Tensor) -> Tensor:
        """(1, E, 1, S)."""
        logits: Tensor = self.proj(x)
        cap = self.spec.softcap
        return logits if cap is None else scaled(torch.tanh(scaled(logits, 1 / cap)), cap)

    def values(self, logits: Tensor) -> Tensor:
        """What experts are chosen by, those of groups that are not taken too."""
        if self.bias is None and self.spec.groups == 1:
            return logits  # in the same order as the scores, and with all their bits
        return self._values_for_choice(logits, self._scores(logits))

    def _values_for_choice(self, logits: Tensor, scores: Tensor) -> Tensor:
        values = logits if self.spec.bias == "choice_of_logits" else scores
        return values if self.bias is None else values + self.bias

    def weigh(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """The weights of given experts, as `forward` gives those of the best."""
        if self._weighs_the_best_logits:
            return scaled(torch.softmax(_values_of(logits, chosen), 1), self.spec.scale)
        if self.spec.jitter is not None:
            return scaled(mix_sparsely(logits, chosen, self.spec.jitter), self.spec.scale)
        return self._weigh_by(self._scores(logits), chosen)

    @property
    def _weighs_the_best_logits(self) -> bool:
        """The best of a softmax over their sum are the softmax of the best logits."""
        return self.spec.score == "softmax" and self.spec.renorm and self.bias is None and self.spec.groups == 1

    def _scores(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.spec.score == "sigmoid" else torch.softmax(logits, 1)

    def _weigh_by(self, scores: Tensor, chosen: Tensor) -> Tensor:
        weights = _values_of(scores, chosen)
        if self.spec.renorm:
            smallest = torch.tensor(SMALLEST, dtype=scores.dtype, device=scores.device)
            weights = weights / torch.maximum(weights.sum(1, keepdim=True), smallest)
        return scaled(weights, self.spec.scale)

    def _to_choose_by(self, logits: Tensor, scores: Tensor) -> Tensor:
        """(1, E, 1, S), of which the largest are chosen."""
        if self.bias is None and self.spec.groups == 1:
            return logits  # in the same order as the scores, and with all their bits
        values = self._values_for_choice(logits, scores)
        G = self.spec.groups
        if G == 1 or self.spec.top_groups == G:
            return values
        by_group = values.view(G, -1, values.shape[3])  # (G, E/G, S)
        is_by_best = self.spec.groups_by == "best"
        worth = by_group.amax(1) if is_by_best else torch.topk(by_group, 2, dim=1)[0].sum(1)  # (G, S)
        best = torch.topk(worth, self.spec.top_groups, dim=0)[1]  # (top groups, S)
        numbers = torch.arange(G, device=values.device).view(-1, 1, 1)
        kept = _is_among(best, numbers).to(values.dtype).sum(1, keepdim=True)  # (G, 1, S)
        return (by_group + (kept - 1) * FAR_BELOW).view(values.shape)


@register("mlp", "moe")
class MixtureMLP(Mixture):
    """mix(x, router(x)), and where they are there a bias and the shared expert's output; latent experts compute
    to_stream(mix(to_latent(x), router(x)))."""

    def __init__(self, spec: schema.MixtureMLP, hidden_size: int) -> None:
        super().__init__(spec, hidden_size)
        self.router = ScoreRouter(spec.router, spec.num_experts, hidden_size)
        latent = spec.latent_size
        self.to_latent = Projection(hidden_size, latent) if latent else None
        self.to_stream = Projection(latent, hidden_size) if latent else None
        bias = torch.empty(1, hidden_size, 1, 1)
        self.output_bias = nn.Parameter(bias, requires_grad=False) if spec.output_bias else None
        self.shared = _build_shared(spec, hidden_size)
        self.shared_scale = spec.shared.scale if spec.shared else 1.0
        self.shared_factor = Projection(hidden_size, 1) if spec.shared and spec.shared.gate else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x if self.to_latent is None else self.to_latent(x), *self.router(x))
        if self.to_stream is not None:
            y = self.to_stream(y)
        if self.output_bias is not None:
            y = y + self.output_bias
        if self.shared is None:
            return y
        shared = scaled(self.shared(x), self.shared_scale)
        return y + (shared if self.shared_factor is None else torch.sigmoid(self.shared_factor(x)) * shared)


def _build_shared(spec: schema.MixtureMLP, hidden_size: int) -> nn.Module | None:
    if spec.shared is None:
        return None
    sizes: dict[str, Any] = {"activation": spec.activation, "intermediate_size": spec.shared.width}
    if spec.gated:
        return GatedMLP(schema.GatedMLP(kind="gated", **sizes), hidden_size)
    return PlainMLP(schema.PlainMLP(kind="plain", **sizes), hidden_size)


def build_experts(
    spec: schema.Experts, hidden_size: int, norm: RMSNorm | LayerNorm, stream_norm: RMSNorm | LayerNorm
) -> nn.Module:
    """The registered mixture of experts of `spec`."""
    return primitive("experts", spec.router.kind)(spec, hidden_size, norm, stream_norm)
