"""From token ids to the first hidden state."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.altup import Spread
from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import register
from coreai_recipes.recipe.schema import AltUp
from coreai_recipes.recipe.schema import Embedding as EmbeddingSpec
from coreai_recipes.recipe.schema import LearnedPositions as LearnedPositionsSpec

INDEX_DTYPES = {"int16": 1 << 15, "uint16": 1 << 16}  # how many rows each reaches


def index_dtype(rows: int) -> str | None:
    """The 16-bit dtype of indices into that many rows, in a package; None where they need 32 bits."""
    return next((name for name, reached in INDEX_DTYPES.items() if rows <= reached), None)


@register("embedding", "table")
class Embedding(nn.Module):
    """input_ids (1, S) -> (1, C, 1, S); weight (V, C), each row times `scale`.

    With a `spec` that says so, rows are `width` long and projected to C, normed, and a row for each position is added.
    What leaves is times `stream_scale`; with `altup` it is (N, C, 1, S), the first stream as it would be without.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        scale: float,
        spec: EmbeddingSpec | None = None,
        stream_scale: float = 1.0,
        altup: AltUp | None = None,
    ) -> None:
        super().__init__()
        spec = spec or EmbeddingSpec()
        self.weight = nn.Parameter(torch.empty(vocab_size, spec.width or hidden_size), requires_grad=False)
        self.projection = Projection(spec.width, hidden_size) if spec.width else None
        self.norm = build_norm(spec.norm, hidden_size) if spec.norm else None
        self.positions = LearnedPositions(spec.positions, hidden_size) if spec.positions else None
        self.spread = Spread(altup, hidden_size, stream_scale) if altup else None
        is_bare = spec.norm is None and spec.positions is None  # then one factor does for both
        self.scale, self.stream_scale = (scale * stream_scale, 1.0) if is_bare else (scale, stream_scale)

    def forward(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """`positions` (S,), integers, are needed where they are learned."""
        return self.from_rows(F.embedding(input_ids, self.weight), positions)

    def from_rows(self, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """What becomes of the rows (1, S, C) of its weight that a host has looked up."""
        x = rows.transpose(1, 2).unsqueeze(2)
        if self.projection is not None:
            x = self.projection(x)
        x = scaled(x, self.scale)
        if self.norm is not None:
            x = self.norm(x)
        if self.positions is not None:
            x = x + self.positions(positions)
        x = scaled(x, self.stream_scale)
        return x if self.spread is None else self.spread(x)


@register("embedding", "positions")
class LearnedPositions(nn.Module):
    """positions (S,) -> (1, C, 1, S); weight (offset + count, C). Beyond the last row, where padding stands, it is
    the last row."""

    def __init__(self, spec: LearnedPositionsSpec, hidden_size: int) -> None:
        super().__init__()
        self.offset, self.last = spec.offset, spec.offset + spec.count - 1
        self.weight = nn.Parameter(torch.empty(self.last + 1, hidden_size), requires_grad=False)

    def forward(self, positions: Tensor) -> Tensor:
        last = torch.tensor(self.last, dtype=positions.dtype, device=positions.device)
        rows = torch.minimum(positions + self.offset, last)
        return F.embedding(rows.unsqueeze(0), self.weight).transpose(1, 2).unsqueeze(2)
