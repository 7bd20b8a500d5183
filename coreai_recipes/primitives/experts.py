"""A mixture of experts over (1, C, 1, S): each token passes through the few that its router chooses."""

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import primitive, register
from coreai_recipes.recipe.schema import Experts as ExpertsSpec
from coreai_recipes.recipe.schema import LayerNorm, RMSNorm


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
        logits = self.proj(scaled(self.norm(x) * self.scale, self.root_size))  # (1, E, 1, S)
        # exactly `top` of them even where logits are equal, which a threshold could not promise
        best, chosen = torch.topk(logits, self.top, dim=1)
        return torch.softmax(best, 1), chosen


@register("experts", "softmax")
class Experts(nn.Module):
    """x (1, C, 1, S), the residual stream before the MLP, -> (1, C, 1, S), to be added to the MLP's own branch.

    post_norm(sum over e of w_e down_e(activation(gate_e(n)) * up_e(n))), with n = pre_norm(x) and w = router(x), as in
    transformers' Gemma4TextDecoderLayer: pre_feedforward_layernorm_2, router and experts, post_feedforward_layernorm_2.
    `gate_up` (E, 2I, C) has the I rows of gate before those of up and `down` is (E, C, I), both as in the checkpoint.

    Args:
        norm: the model's norm, of which `post_norm` is one.
        stream_norm: the same for what reads the residual stream, `pre_norm` and the router: where the stream is scaled
            down its eps is too.
    """

    def __init__(
        self, spec: ExpertsSpec, hidden_size: int, norm: RMSNorm | LayerNorm, stream_norm: RMSNorm | LayerNorm
    ) -> None:
        super().__init__()
        E, width = spec.num_experts, spec.intermediate_size
        self.num_experts, self.decode = E, spec.decode
        self.pre_norm = build_norm(stream_norm, hidden_size)
        self.router = Router(hidden_size, E, spec.router.top, stream_norm.eps)
        self.gate_up = nn.Parameter(torch.empty(E, 2 * width, hidden_size), requires_grad=False)
        self.down = nn.Parameter(torch.empty(E, hidden_size, width), requires_grad=False)
        self.post_norm = build_norm(norm, hidden_size)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x)
        n = self.pre_norm(x).squeeze(2)  # (1, C, S)
        mix = self._gather if self.gathers(x.shape[3]) else self._take_all
        mixed = mix(n, weights, chosen)  # (1, C, S)
        out: Tensor = self.post_norm(mixed.unsqueeze(2))
        return out

    def gathers(self, tokens: int) -> bool:
        """Whether only the chosen experts of a call are read and computed; else all of them are."""
        return self.decode == "gathered" and tokens == 1

    def _gather(self, n: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """One token: the weights of its experts alone are read."""
        rows = chosen.flatten()  # (top,)
        weights = weights.squeeze(0) * self.router.expert_scale.index_select(0, rows)  # (top, 1, 1)
        return self._mix(n, weights, self.gate_up.index_select(0, rows), self.down.index_select(0, rows))

    def _take_all(self, n: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Several tokens: every expert computes every token, with weight zero where it was not chosen."""
        experts = torch.arange(self.num_experts, device=n.device).view(-1, 1, 1, 1)
        is_chosen = (experts == chosen).to(n.dtype)  # (E, top, 1, S)
        spread = (is_chosen * weights).sum(1) * self.router.expert_scale  # (E, 1, S)
        return self._mix(n, spread, self.gate_up, self.down)

    def _mix(self, n: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """The weighted sum of the given experts, (1, C, S); weights (e, 1, S), gate_up (e, 2I, C), down (e, C, I)."""
        gate, up = torch.matmul(gate_up, n).chunk(2, dim=1)  # (e, I, S)
        # before `down`, where a value is not yet a sum of I products: an unchosen expert cannot overflow there
        hidden = self.activation(gate) * up * weights
        return torch.matmul(down, hidden).sum(0, keepdim=True)


def build_experts(
    spec: ExpertsSpec, hidden_size: int, norm: RMSNorm | LayerNorm, stream_norm: RMSNorm | LayerNorm
) -> nn.Module:
    """The registered mixture of experts of `spec`."""
    return primitive("experts", spec.router.kind)(spec, hidden_size, norm, stream_norm)
