"""Feed-forward blocks over (1, C, 1, S)."""

from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.norm import SMALLEST, build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import primitive, register
from coreai_recipes.recipe.schema import GatedMLP as GatedMLPSpec
from coreai_recipes.recipe.schema import MixtureMLP
from coreai_recipes.recipe.schema import NoMLP as NoMLPSpec
from coreai_recipes.recipe.schema import PlainMLP as PlainMLPSpec


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2."""
    positive = torch.relu(x)
    return positive * positive


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": torch.relu,
    "relu2": relu2,
}


def beyond(x: Tensor, deviations: float) -> Tensor:
    """relu(x - mean - deviations * std) over the channels of (1, C, H, W), the deviation that of all of them (Gemma 3n,
    `_gaussian_topk`)."""
    centered = x - x.mean(1, keepdim=True)
    # over its largest: a square overflows float16 from 256 on
    largest = torch.maximum(
        centered.abs().amax(1, keepdim=True), torch.tensor(SMALLEST, dtype=x.dtype, device=x.device)
    )
    over = centered / largest
    deviation = largest * torch.sqrt((over * over).mean(1, keepdim=True))
    return torch.relu(centered - scaled(deviation, deviations))


class XIELU(nn.Module):
    """alpha_p x^2 + x / 2 above zero, alpha_n (exp(x) - 1 - x) + x / 2 below (arXiv 2411.13010).

    The parameters hold the alphas themselves: a checkpoint has the logits of their softplus, which is taken in float32
    when they are read (`folding`). transformers' eps of -1e-6, which float16 cannot tell from zero, is left out: it
    makes a difference of 1e-6 at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1, 1, 1, 1), requires_grad=False)
        self.alpha_n = nn.Parameter(torch.empty(1, 1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        positive = torch.relu(x)
        negative = x - positive
        # no sum of the two linear terms: with a float16 of 6e4 it would overflow where the result does not
        below = F.elu(negative) * self.alpha_n + negative * (0.5 - self.alpha_n)
        return positive * self.alpha_p * positive + positive * 0.5 + below


@register("mlp", "gated")
class GatedMLP(nn.Module):
    """down(norm(activation(gate(x)) * up(x))), the norm where there is one; the gate cut off where it is sparse."""

    def __init__(self, spec: GatedMLPSpec, hidden_size: int) -> None:
        super().__init__()
        self.gate = Projection(hidden_size, spec.intermediate_size, spec.bias)
        self.up = Projection(hidden_size, spec.intermediate_size, spec.bias)
        self.inner_norm = build_norm(spec.inner_norm, spec.intermediate_size) if spec.inner_norm else None
        self.down = Projection(spec.intermediate_size, hidden_size, spec.bias)
        self.activation = ACTIVATIONS[spec.activation]
        self.cutoff = None if spec.sparsity is None else NormalDist().inv_cdf(spec.sparsity)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        hidden = self.activation(gate if self.cutoff is None else beyond(gate, self.cutoff)) * self.up(x)
        out: Tensor = self.down(hidden if self.inner_norm is None else self.inner_norm(hidden))
        return out


@register("mlp", "plain")
class PlainMLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, spec: PlainMLPSpec, hidden_size: int) -> None:
        super().__init__()
        self.up = Projection(hidden_size, spec.intermediate_size, spec.bias)
        self.down = Projection(spec.intermediate_size, hidden_size, spec.bias)
        self.activation = XIELU() if spec.activation == "xielu" else ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


@register("mlp", "none")
class NoMLP(nn.Module):
    """Nothing is added to the stream; a layer that has none does not ask."""

    def __init__(self, spec: NoMLPSpec, hidden_size: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def build_mlp(spec: GatedMLPSpec | PlainMLPSpec | MixtureMLP | NoMLPSpec, hidden_size: int) -> nn.Module:
    """The registered MLP of `spec`."""
    return primitive("mlp", spec.kind)(spec, hidden_size)
