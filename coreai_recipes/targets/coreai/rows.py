"""States as values: reading and writing rows at places that a call computes, each one operation of a program.

A cache takes slices of a state whose bounds are tensors. torch.export refuses those, so it is given `RowsOf` in the
state's place: the same slices, by two operations of torch's library whose eager form is the slice itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

READ, READ_FIRST, WRITE = (f"coreai_recipes::{name}_rows" for name in ("read", "read_first", "write"))


def read_rows(state: Tensor, at: Tensor, count: int) -> Tensor:
    """`count` entries of the first axis from `at` (1,) on."""
    return state[int(at) : int(at) + count].clone()


def read_first_rows(state: Tensor, at: Tensor, count: int, rows: int) -> Tensor:
    """The first `rows` of them: of a state (N, ..., R, D), (count, ..., rows, D)."""
    return state[int(at) : int(at) + count, ..., :rows, :].clone()


def write_rows(state: Tensor, new: Tensor, at: Tensor, first: Tensor) -> Tensor:
    """The state (N, ..., R, D) with `new` (n, ..., S, D) in it, from `at` (1,) and from row `first` (1,) on."""
    state = state.clone()
    count, tokens = new.shape[0], new.shape[-2]
    state[int(at) : int(at) + count, ..., int(first) : int(first) + tokens, :] = new
    return state


def _declare() -> None:
    for name, signature, function, fake in (
        (READ, "(Tensor state, Tensor at, int count)", read_rows, lambda state, at, count: state[:count].clone()),
        (
            READ_FIRST,
            "(Tensor state, Tensor at, int count, SymInt rows)",
            read_first_rows,
            lambda state, at, count, rows: state[:count, ..., :rows, :].clone(),
        ),
        (WRITE, "(Tensor state, Tensor new, Tensor at, Tensor first)", write_rows, lambda state, *_: state.clone()),
    ):
        torch.library.define(name, f"{signature} -> Tensor")
        torch.library.impl(name, "CompositeExplicitAutograd", function)
        torch.library.register_fake(name, fake)


_declare()


class RowsOf:
    """What stands for a state while a fragment is exported; `value` is the state as it was written last."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.is_written = value, False

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    def __getitem__(self, places: Any) -> "Read":
        whole = places if isinstance(places, tuple) else (places,)
        return Read(self.value, _place(whole[0]), whole[-1].stop if len(whole) > 1 else None)

    def __setitem__(self, places: Any, new: Tensor) -> None:
        whole = places if isinstance(places, tuple) else (places,)
        first = _place(whole[-1]) if len(whole) > 1 else torch.zeros(1, dtype=torch.int32)
        self.value = torch.ops.coreai_recipes.write_rows(self.value, new, _place(whole[0]), first)
        self.is_written = True


@dataclass(frozen=True)
class Read:
    """A slice whose size its reader says; of its rows the first `rows` where there is a number."""

    state: Tensor
    at: Tensor
    rows: int | None

    def view(self, count: int, *shape: int) -> Tensor:
        ours = torch.ops.coreai_recipes
        if self.rows is None:
            found: Tensor = ours.read_rows(self.state, self.at, count)
        else:
            found = ours.read_first_rows(self.state, self.at, count, self.rows)
        return found.view(count, *shape)


def _place(rows: slice) -> Tensor:
    start = rows.start
    if not isinstance(start, Tensor):  # a number that sizes make up
        start = torch.scalar_tensor(start, dtype=torch.int32)
    return start.view(1)
