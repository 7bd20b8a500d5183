"""From the last hidden state to logits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.recipe.schema import HeadTransform


class Transform(nn.Module):
    """x (1, C, 1, S) -> norm(activation(dense(x)))."""

    def __init__(self, spec: HeadTransform, hidden_size: int) -> None:
        super().__init__()
        self.dense = Projection(hidden_size, hidden_size, spec.bias)
        self.activation = ACTIVATIONS[spec.activation]
        self.norm = build_norm(spec.norm, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.activation(self.dense(x)))
        return out


@register("head", "linear")
class Head(nn.Module):
    """x (1, C, 1, S) -> logits (1, S, V). A tied head owns no weight and is given the embedding's, (V, C, 1, 1).

    In a package they leave in pieces, by `in_pieces`.

    Where the embedding's rows are `width` long, x is projected to that width first. `scale` is taken before the product
    with the weight, of which C and not V values are scaled; a bias is not scaled. `given_scale` is that of the x that
    is given, and of the bias: the logits are without it.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        tied: bool,
        softcap: float | None,
        bias: bool = False,
        scale: float = 1.0,
        width: int | None = None,
        given_scale: float = 1.0,
        transform: HeadTransform | None = None,
    ) -> None:
        super().__init__()
        shape = (vocab_size, width or hidden_size, 1, 1)
        self.weight = None if tied else nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(vocab_size), requires_grad=False) if bias else None
        self.projection = Projection(hidden_size, width) if width else None
        self.transform = Transform(transform, hidden_size) if transform else None
        self.scale, self.softcap, self.given_scale = scale, softcap, given_scale

    def forward(self, x: Tensor, table: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """`table` and `bias` stand in for the head's own: those of the rows of a block, or the embedding's."""
        weight, bias = self.weight if table is None else table, self.bias if bias is None else bias
        if weight is None:
            raise ValueError("a tied head needs the embedding's table")
        return self._capped(F.conv2d(self._given(x), weight, bias).squeeze(2).transpose(1, 2))

    def in_pieces(
        self, x: Tensor, counts: Sequence[int], tables: Sequence[Tensor], biases: Sequence[Tensor] = ()
    ) -> Tensor:
        """Logits (1, n, m) of x (1, C, 1, 1) or (1, S, n, m) of x (1, C, 1, S).

        There is a product for each of `counts`, of which the rows of its table, count x m, are as many pieces of the
        logits; with a bias, that has biases of its own.
        """
        x, S = self._given(x), x.shape[3]
        parts = []
        for number, (count, table) in enumerate(zip(counts, tables, strict=True)):
            product = F.conv2d(x, table, biases[number] if biases else None)  # (1, count * m, 1, S)
            if S == 1:
                parts.append(product.view(1, count, -1))
            else:
                parts.append(product.view(1, count, -1, S).permute(0, 3, 1, 2))  # (1, S, count, m)
        return self._capped(parts[0] if len(parts) == 1 else torch.cat(parts, -2))

    def _given(self, x: Tensor) -> Tensor:
        """What its matrix is multiplied with."""
        if self.transform is not None:
            x = self.transform(x)
        return scaled(x if self.projection is None else self.projection(x), self.scale)

    def _capped(self, logits: Tensor) -> Tensor:
        if self.softcap is None:
            return scaled(logits, 1 / self.given_scale)
        return scaled(torch.tanh(scaled(logits, 1 / self.softcap / self.given_scale)), self.softcap)
