"""Per-layer embeddings: a second table, of which each layer takes a slice of the token's row (Gemma 4)."""

from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.recipe.schema import LayerNorm, PerLayerEmbedding, RMSNorm


@register("per_layer", "input")
class PerLayerInput(nn.Module):
    """x (1, C, 1, S), the scaled embedding, and rows (1, S, L * P) of the second table -> (L, P, 1, S).

    (norm(projection(x) * C^-0.5) + rows * P^0.5) * 2^-0.5, a slice for each of L layers
    (transformers, modeling_gemma4, `project_per_layer_inputs`). `stream_scale` is what x was scaled by.
    """

    def __init__(
        self, spec: PerLayerEmbedding, layers: int, hidden_size: int, norm: RMSNorm | LayerNorm, stream_scale: float
    ) -> None:
        super().__init__()
        self.layers, self.size = layers, spec.size
        self.projection = Projection(hidden_size, layers * spec.size)
        self.norm = build_norm(norm, spec.size)
        self.projection_scale = hidden_size**-0.5 / stream_scale

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        L, P, S = self.layers, self.size, x.shape[3]
        projected = self.norm(scaled(self.projection(x), self.projection_scale).view(L, P, 1, S))
        from_table = rows.view(S, L * P).transpose(0, 1).reshape(L, P, 1, S)
        return scaled(projected + scaled(from_table, P**0.5), 2**-0.5)


@register("per_layer", "gate")
class PerLayerGate(nn.Module):
    """x (1, C, 1, S) and the layer's slice (1, P, 1, S) -> norm(projection(act(gate(x)) * slice)), to be added to x."""

    def __init__(self, spec: PerLayerEmbedding, hidden_size: int, norm: RMSNorm | LayerNorm) -> None:
        super().__init__()
        self.gate = Projection(hidden_size, spec.size)
        self.projection = Projection(spec.size, hidden_size)
        self.norm = build_norm(norm, hidden_size)
        self.activation = ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor, of_layer: Tensor) -> Tensor:
        out: Tensor = self.norm(self.projection(self.activation(self.gate(x)) * of_layer))
        return out


def slice_of(per_layer: Tensor, index: Tensor) -> Tensor:
    """The slice (1, P, 1, S) of layer `index` (1,) of the per-layer inputs (L, P, 1, S)."""
    at = index[0]
    return per_layer[at : at + 1].view(1, *per_layer.shape[1:])
