"""How the residual stream leaves a package and comes into the next one, and how one token of it is picked."""

from torch import Tensor

from coreai_recipes.export.fragments import FLOAT, INTEGER, Fragment, Port
from coreai_recipes.export.pieces import Piece
from coreai_recipes.primitives.cache import last_of


def giving_fragment(shape: tuple[int, int, int, int]) -> Fragment:
    """x (N, C, 1, S) -> (1, S, N * C), as it leaves a package: with full lanes on the last axis."""
    N, C, _, S = shape
    return Fragment(
        f"give_{N}x{C}x{S}", _GivingPiece(), {"x": Port(FLOAT, shape)}, {"y": Port(FLOAT, (1, S, N * C))}, {}
    )


def taking_fragment(shape: tuple[int, int, int, int]) -> Fragment:
    """What a package before it gave, (1, S, N * C) -> x (N, C, 1, S)."""
    N, C, _, S = shape
    piece = _TakingPiece(shape)
    return Fragment(f"take_{N}x{C}x{S}", piece, {"x": Port(FLOAT, (1, S, N * C))}, {"y": Port(FLOAT, shape)}, {})


def pick_fragment(name: str, shape: tuple[int, int, int, int]) -> Fragment:
    """x (N, C, 1, S) of all tokens, count -> x of the last real one."""
    return Fragment(
        f"{name}_{shape[3]}",
        _PickPiece(),
        {"x": Port(FLOAT, shape), "count": Port(INTEGER, (1,))},
        {"y": Port(FLOAT, (*shape[:3], 1))},
        {},
    )


class _GivingPiece(Piece):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, x.shape[3]).transpose(1, 2)  # (1, S, N * C)


class _TakingPiece(Piece):
    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(self.shape)


class _PickPiece(Piece):
    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        return last_of(x, count)
