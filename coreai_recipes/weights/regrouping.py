"""Channels of MLPs in another order, so that those whose weights are of like size share a palette.

A channel is a row of `gate` and of `up` and a column of `down`: the three permuted alike are the same function, but for
the rounding of `down`'s sums. The order is of weights alone, so that whoever has the checkpoint finds it again: by the
product of the sizes of both rows, which are sums of whole numbers, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, overload
from weakref import WeakKeyDictionary

from coreai_recipes.weights.binding import Binding

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.checkpoint.base import Checkpoint

SAID = "compress.regroup: the channels of each MLP are put in the order of their size"
STEPS = 1 << 20  # of a matrix's largest weight: squares of 2^23 weights are summed in 64 bits
ROWS = 256  # of which copies are held at once
READ = ("gate", "up")  # the matrices with a row for each channel

Order = tuple[int, ...]
_found: WeakKeyDictionary[Checkpoint, dict[tuple[object, ...], Order]] = WeakKeyDictionary()


class ChannelOrder(Sequence[int]):
    """The channels of an MLP whose rows are `bindings`, the smallest first. Weights are read when it is looked at, and
    once for each checkpoint."""

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self._bindings = tuple(bindings)

    def __len__(self) -> int:
        return self._bindings[0].shape[0]

    def __iter__(self) -> Iterator[int]:
        return iter(self._order())

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Order: ...

    def __getitem__(self, index: int | slice) -> int | Order:
        return self._order()[index]

    def _order(self) -> Order:
        of_checkpoint = _found.setdefault(self._bindings[0].checkpoint, {})
        key = tuple((each.tensor, each.rows) for each in self._bindings)
        if key not in of_checkpoint:
            of_checkpoint[key] = self._find()
        return of_checkpoint[key]

    def _find(self) -> Order:
        import torch

        product = torch.ones(len(self), dtype=torch.float64)
        for each in self._bindings:
            product *= row_sizes(each.read())
        return tuple(product.argsort(stable=True).tolist())


def row_sizes(matrix: Tensor) -> Tensor:
    """Squared sizes of rows (rows, I), float64, as whole multiples of one number."""
    import torch

    largest = matrix.abs().max().double()
    if not 0 < float(largest) < float("inf"):  # of zeros; or not to be stored at all, which is said where it is written
        return torch.ones(len(matrix), dtype=torch.float64)
    found = torch.empty(len(matrix), dtype=torch.float64)
    for first in range(0, len(matrix), ROWS):
        whole = (matrix[first : first + ROWS].double() / largest * STEPS).round().long()
        found[first : first + ROWS] = whole.square().sum(1)
    return found


def regrouped(bindings: Mapping[str, Binding], mlp: str) -> dict[str, Binding]:
    """The parameters of a gated or plain MLP in another order of channels; `mlp` is where their names begin."""
    order = ChannelOrder([bindings[f"{mlp}{part}.weight"] for part in READ if f"{mlp}{part}.weight" in bindings])
    found = {}
    for name, binding in bindings.items():
        if not name.startswith(mlp):
            continue
        part, leaf = name.removeprefix(mlp).split(".")
        if part in (*READ, "inner_norm"):
            found[name] = replace(binding, rewrite=replace(binding.rewrite, row_order=order))
        elif (part, leaf) == ("down", "weight"):
            found[name] = replace(binding, rewrite=replace(binding.rewrite, column_order=order))
    return found
