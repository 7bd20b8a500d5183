"""Alternating updates (AltUp, Gemma 3n): several streams between layers, of which each layer computes one.

A layer predicts all streams from all, runs its blocks on the active one, and corrects every stream by what they changed
(arXiv 2301.13310; transformers, modeling_gemma3n). The streams are the first axis: (N, C, 1, S).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.norm import SMALLEST, build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.recipe.schema import AltUp as AltUpSpec
from coreai_recipes.recipe.schema import LayerNorm, RMSNorm

FLOOR = 1e-5  # of the mean square by which a projected stream is divided


class Spread(nn.Module):
    """x (1, C, 1, S) -> (N, C, 1, S): x, and N - 1 projections of it, each brought to the magnitude of x.

    `stream_scale` is what x was scaled by.
    """

    def __init__(self, spec: AltUpSpec, hidden_size: int, stream_scale: float = 1.0) -> None:
        super().__init__()
        self.projections = _projections(spec, hidden_size)
        self.least = FLOOR**0.5 * stream_scale

    def forward(self, x: Tensor) -> Tensor:
        wanted = magnitude(x)
        return torch.cat((x, *(_brought_to(wanted, project(x), self.least) for project in self.projections)))


class GatheredNorm(nn.Module):
    """x (N, C, 1, S) -> (1, C, 1, S): the norm of the mean of the first stream and of projections of the others, each
    brought to the first one's magnitude."""

    def __init__(self, spec: AltUpSpec, hidden_size: int, norm: nn.Module, stream_scale: float = 1.0) -> None:
        super().__init__()
        self.projections = _projections(spec, hidden_size)
        self.norm, self.share = norm, 1 / spec.num_inputs
        self.least = FLOOR**0.5 * stream_scale

    def forward(self, x: Tensor) -> Tensor:
        first = x[:1]
        wanted, total = magnitude(first), first
        for index, project in enumerate(self.projections, 1):
            total = total + _brought_to(wanted, project(x[index : index + 1]), self.least)
        out: Tensor = self.norm(scaled(total, self.share))
        return out


class AltUp(nn.Module):
    """What a layer does with its streams around its blocks. `output_scale` is of what the per-layer gate reads."""

    def __init__(
        self,
        spec: AltUpSpec,
        hidden_size: int,
        norm: RMSNorm | LayerNorm,
        stream_norm: RMSNorm | LayerNorm,
        gives_rows: bool,
    ) -> None:
        super().__init__()
        count = spec.num_inputs
        self.count, self.active, self.input_scale = count, spec.active_idx, 1 / hidden_size
        self.norm = build_norm(stream_norm, hidden_size)
        self.modality = Projection(hidden_size, count)
        self.prediction = Projection(count, count * count)
        self.correction = Projection(count, count)
        self.output_scale = nn.Parameter(torch.empty(1, hidden_size, 1, 1), requires_grad=False) if gives_rows else None

    def _modalities(self, x: Tensor) -> Tensor:
        """tanh(modality(norm(x) / C)) of one stream, (1, N, 1, S)."""
        modalities: Tensor = torch.tanh(self.modality(scaled(self.norm(x), self.input_scale)))
        return modalities

    def active_of(self, x: Tensor) -> Tensor:
        return x[self.active : self.active + 1]

    def predict(self, x: Tensor) -> Tensor:
        """x (N, C, 1, S) -> (N, C, 1, S): to each stream, a part of every stream."""
        N, S = self.count, x.shape[3]
        parts = self.prediction(self._modalities(self.active_of(x))).view(N, N, 1, S)  # to, from
        predicted = x
        for index in range(N):
            predicted = predicted + x[index : index + 1] * parts[:, index : index + 1]
        return predicted

    def correct(self, predicted: Tensor, activated: Tensor) -> Tensor:
        """What the blocks made of the active stream, `activated` (1, C, 1, S), and a share of its news for each."""
        shares: Tensor = self.correction(self._modalities(activated)) + 1.0
        news = activated - self.active_of(predicted)
        return predicted + news * shares.view(self.count, 1, 1, -1)

    def add_rows(self, x: Tensor, rows: Callable[[Tensor], Tensor]) -> Tensor:
        """x (N, C, 1, S) with what the per-layer gate `rows` makes of the active stream added to all but the first."""
        active = self.active_of(x)
        given = rows(active if self.output_scale is None else active * self.output_scale)
        return torch.cat((x[:1], x[1:] + given))


class Laurel(nn.Module):
    """x (1, C, 1, S), what a layer's attention reads -> x + norm(right(left(x))): a residual of low rank (Gemma 3n).

    It is added to the stream, whose scale its norm's weights hold and x takes up here.
    """

    def __init__(self, rank: int, hidden_size: int, norm: RMSNorm | LayerNorm, stream_scale: float = 1.0) -> None:
        super().__init__()
        self.left = Projection(hidden_size, rank)
        self.right = Projection(rank, hidden_size)
        self.norm = build_norm(norm, hidden_size)
        self.stream_scale = stream_scale

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.right(self.left(x)))
        return scaled(x, self.stream_scale) + out


def magnitude(x: Tensor) -> Tensor:
    """The root of the mean square over the channels of (1, C, 1, S)."""
    over, largest = _over_largest(x)
    return largest * torch.sqrt((over * over).mean(1, keepdim=True))


def _brought_to(wanted: Tensor, x: Tensor, least: float) -> Tensor:
    """x times `wanted` over its own magnitude, which counts as `least` at least."""
    over, largest = _over_largest(x)
    floor = torch.tensor(least, dtype=x.dtype, device=x.device) / largest
    own = torch.maximum(torch.sqrt((over * over).mean(1, keepdim=True)), floor)
    return over * (wanted / own)


def _over_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """x over its largest magnitude, and that: a square overflows float16 from 256 on."""
    largest = torch.maximum(x.abs().amax(1, keepdim=True), torch.tensor(SMALLEST, dtype=x.dtype, device=x.device))
    return x / largest, largest


def _projections(spec: AltUpSpec, hidden_size: int) -> nn.ModuleList:
    return nn.ModuleList(Projection(hidden_size, hidden_size) for _ in range(1, spec.num_inputs))
