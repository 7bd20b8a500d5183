"""How a parameter differs from the tensor that a checkpoint stores. A leaf: it imports nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rewrite:
    """A parameter is (function(tensor) * multiplier + offset) * factor, its rows (or its columns) in `order` within
    each run of len(order).

    `multiplier` is a number, or one for each run of so many rows: (rows, number).
    """

    offset: float = 0.0
    multiplier: float | tuple[tuple[int, float], ...] = 1.0
    factor: float = 1.0
    row_order: Sequence[int] | None = None
    column_order: Sequence[int] | None = None
    function: Literal["softplus", "negative_exp"] | None = None

    def apply(self, tensor: Tensor, first: int = 0) -> Tensor:
        """The parameter, from whole heads of the checkpoint's tensor (rows, columns) or (rows,); its first row
        is the tensor's row `first`."""
        import torch

        if self.function == "softplus":
            tensor = torch.nn.functional.softplus(tensor.float())
        elif self.function == "negative_exp":
            tensor = -torch.exp(tensor.float())
        if self.multiplier != 1.0:
            tensor = tensor.float() * self._multipliers(first, tensor)
        if self.offset or self.factor != 1.0:
            tensor = (tensor.float() + self.offset) * self.factor
        for axis, order in enumerate((self.row_order, self.column_order)):
            if order is not None:
                starts = torch.arange(0, tensor.shape[axis], len(order))
                tensor = tensor.index_select(axis, (starts[:, None] + torch.tensor(tuple(order))).flatten())
        return tensor

    def _multipliers(self, first: int, tensor: Tensor) -> Tensor | float:
        """Of the rows of a tensor that begins with row `first`."""
        import torch

        if isinstance(self.multiplier, float):
            return self.multiplier
        rows, numbers = zip(*self.multiplier, strict=True)
        of_rows = torch.tensor(numbers).repeat_interleave(torch.tensor(rows))[first : first + len(tensor)]
        return of_rows.view(-1, *[1] * (tensor.dim() - 1))

    def unfold(self, parameter: Tensor) -> Tensor:
        """The parameter in the tensor's own order and without the factor, which only an exported form has; what a model
        itself makes of its tensor stays."""
        import torch

        for axis, order in enumerate((self.row_order, self.column_order)):
            if order is not None:
                starts = torch.arange(0, parameter.shape[axis], len(order))
                back = torch.tensor(tuple(order)).argsort()
                parameter = parameter.index_select(axis, (starts[:, None] + back).flatten())
        return parameter if self.factor == 1.0 else parameter / self.factor


AS_STORED = Rewrite()
