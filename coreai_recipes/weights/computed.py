"""Parameters that no checkpoint has, because they follow from the recipe or from other tensors: made when they are
read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coreai_recipes.recipe.schema import LearnedPositions
from coreai_recipes.weights.binding import Binding

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 10000.0  # the wavelength of the slowest sine over that of the fastest


@dataclass(frozen=True)
class SinesBinding(Binding):
    """The rows (offset + count, C) of positions that are sines."""

    spec: LearnedPositions | None = None

    @property
    def tensors(self) -> set[str]:
        return set()

    def _stored_blocks(self) -> Iterator[Tensor]:
        if self.spec is not None:
            rows = position_sines(self.spec, self.shape[1])
            yield rows if self.rows is None else rows[self.rows.start : self.rows.stop]


def position_sines(spec: LearnedPositions, width: int) -> Tensor:
    """(offset + count, width) float32: the sines of each row, then its cosines.

    The frequencies, and what they are multiplied with, are rounded as transformers rounds them: in float32 an angle has
    lost its last digits long before the last position, and with others the rows would be 90 dB apart.
    """
    import torch

    half = width // 2
    places = torch.arange(half, dtype=torch.int64).float()
    if spec.sines == "closed":
        frequencies = torch.exp(places * -(math.log(LONGEST) / (half - 1)))
    else:
        frequencies = 1 / torch.pow(LONGEST, 2 * places / width)
    positions = torch.arange(spec.offset + spec.count, dtype=torch.int64).float()
    angles = positions.unsqueeze(1) * frequencies.unsqueeze(0)
    return torch.cat((torch.sin(angles), torch.cos(angles)), 1)


@dataclass(frozen=True)
class LambdaBinding(Binding):
    """The lambda (1,) of layer `layer` of differential attention, of its q1, k1, q2 and k2, which are joined."""

    layer: int = 0

    def _stored_blocks(self) -> Iterator[Tensor]:
        import torch

        q1, k1, q2, k2 = (tensor.float() for tensor in super()._stored_blocks())
        yield (torch.exp((q1 * k1).sum()) - torch.exp((q2 * k2).sum()) + initial_lambda(self.layer)).view(1)


@dataclass(frozen=True)
class FadingBinding(Binding):
    """Logarithms (H,) of what the heads of lightning attention keep in layer `layer` of `layers`."""

    layer: int = 0
    layers: int = 1

    @property
    def tensors(self) -> set[str]:
        return set()

    def _stored_blocks(self) -> Iterator[Tensor]:
        yield lightning_fading(self.shape[0], self.layer, self.layers)


def lightning_fading(heads: int, layer: int, layers: int) -> Tensor:
    """(heads,) float32: the slopes of alibi, less in each later layer (transformers' get_slope_rate)."""
    import torch

    slopes = (1 / 2 ** (8 / heads)) ** (torch.arange(heads, dtype=torch.int64) + 1)
    return -slopes * (1 - layer / (layers - 1 + 1e-5) + 1e-5)


def initial_lambda(layer: int) -> float:
    """What lambda is where a layer has learned nothing (transformers' lambda_init_fn)."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)
