"""The one linear map of every layer, as the engine wants it: a 1x1 convolution over (1, C, 1, S)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Factors = tuple[Tensor, Tensor]  # A (1, rank, in) and B transposed, (1, rank, out), of what is added to a matrix


class Projection(nn.Module):
    """x (1, in, 1, S) -> (1, out, 1, S); weight (out, in, 1, 1), bias (out,) or none.

    Within `with_low_rank` the product of two smaller matrices, which are values of the program, is added.
    """

    low_rank: Factors | None = None

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_channels), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias)
        return y if self.low_rank is None else y + low_rank_product(x, *self.low_rank).view(y.shape)


def low_rank_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """B A x (1, out, S) of x (1, in, ...), by matmul: convolutions by weights that are computed crash compilers."""
    flat = x.reshape(1, x.shape[1], -1)  # (1, in, S)
    return b.transpose(1, 2) @ (a @ flat)


@contextmanager
def with_low_rank(module: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    """The module with products beside its projections of these names."""
    changed = [(cast(Projection, module.get_submodule(name)), pair) for name, pair in factors.items()]
    try:
        for projection, pair in changed:
            projection.low_rank = pair
        yield
    finally:
        for projection, _ in changed:
            projection.low_rank = None
