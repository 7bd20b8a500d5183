"""Feed-forward blocks over (1, C, 1, S)."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import primitive, register
from coreai_recipes.recipe.schema import GatedMLP as GatedMLPSpec
from coreai_recipes.recipe.schema import MixtureMLP

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@register("mlp", "gated")
class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, spec: GatedMLPSpec, hidden_size: int) -> None:
        super().__init__()
        self.gate = Projection(hidden_size, spec.intermediate_size, spec.bias)
        self.up = Projection(hidden_size, spec.intermediate_size, spec.bias)
        self.down = Projection(spec.intermediate_size, hidden_size, spec.bias)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return out


def build_mlp(spec: GatedMLPSpec | MixtureMLP, hidden_size: int) -> nn.Module:
    """The registered MLP of `spec`."""
    return primitive("mlp", spec.kind)(spec, hidden_size)
