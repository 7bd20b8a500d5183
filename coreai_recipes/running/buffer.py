"""The rows of a session since the last commit, where a program keeps such: which positions they hold, when to commit.

Row p mod R holds position p. Whoever calls at a position since the last commit is right, whatever was fed behind it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class RowBuffer:
    """`shapes` are (layers, R, columns) by name. A commit leaves `spare` positions to go back to, if there is room."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], spare: int = 0) -> None:
        self.shapes, self.spare = shapes, spare
        self.base = 0  # the position of the last commit
        self._rows: dict[str, Tensor] = {}

    @property
    def rows(self) -> "dict[str, Tensor]":
        """As a call takes them."""
        if not self._rows:
            import torch

            self._rows = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        return self._rows

    @property
    def inputs(self) -> "dict[str, Tensor]":
        """What a call takes of it."""
        import torch

        return {"base": torch.tensor([self.base], dtype=torch.int32), **self.rows}

    def to_commit(self, position: int, count: int) -> int:
        """The position up to which to commit before a call of `count` tokens at `position`: `base` if there is room.

        Raises ValueError for a position before the last commit, whose state is gone.
        """
        if position < self.base:
            raise ValueError(f"a call at position {position} is before the last commit, at {self.base}")
        size = min(shape[1] for shape in self.shapes.values())
        if count > size:
            raise ValueError(f"{count} tokens do not go into a buffer of {size} rows")
        if position + count - self.base <= size:
            return self.base
        return max(self.base, position - min(self.spare, size - count))

    def put(self, position: int, count: int, given: "Mapping[str, Tensor]") -> None:
        """Take the rows of a call's first `count` tokens, `new_NAME` (layers, S, columns) each."""
        import torch

        for name, rows in self.rows.items():
            places = torch.arange(position, position + count) % rows.shape[1]
            rows[:, places] = given[f"new_{name}"][:, :count].to(rows.dtype)
