"""Rows by position since the last commit, beside what a layer carried then: a call at any position since is exact.

A ring of R rows holds position p in row p mod R, as keys and values do. What a layer carries is that of the position
`base`, of the last commit; a call at `position` sees the rows from base up to it, whatever was written there before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coreai_recipes.primitives.linear_state import LinearState, read_faded

if TYPE_CHECKING:
    from coreai_recipes.primitives.layer_inputs import LayerInputs


@dataclass
class Buffer:
    """`rows` (N, R, C) of N layers, whose columns are the `parts`, by name how many; and what a call has `left`."""

    rows: Tensor
    parts: Mapping[str, int]
    left: dict[str, Tensor] = field(default_factory=dict)

    def part(self, name: str) -> Tensor:
        """(N, R, columns)."""
        names = list(self.parts)
        first = sum(self.parts[each] for each in names[: names.index(name)])
        return self.rows[:, :, first : first + self.parts[name]]

    def leave(self, name: str, value: Tensor) -> None:
        """The call's own rows of a part, (1, S, columns)."""
        self.left[name] = value

    @property
    def new_rows(self) -> Tensor:
        """(1, S, C): the rows that the call has left."""
        return torch.cat([self.left[name] for name in self.parts], 2)


@dataclass(frozen=True)
class HeldState:
    """The state of a recurrence as of the last commit, and what rows since make of it.

    That is S <- decay S + (added * left) keys, of which nobody needs the sum who only reads it.

    Attributes:
        decay: what is left of the state, (G, M, 1, 1), or of each of its columns, (G, 1, K, 1).
        added: what each row has added, (G, M, V, R).
        keys: where, (G, 1, R, K). What is left of that is a factor of the one or, by column, of the other, and so is 0
            where a row holds nothing.
    """

    state: LinearState
    decay: Tensor
    added: Tensor
    keys: Tensor

    def read(self, x: Tensor) -> Tensor:
        """The state times x (G, 1, K, S), (G, M, V, S)."""
        return read_faded(self.state, x, self.decay) + torch.matmul(self.added, torch.matmul(self.keys, x))

    def whole(self) -> LinearState:
        """The state itself."""
        return self.state.advanced(self.decay, self.added, self.keys)


def held_state(state: LinearState, keys: Tensor, added: Tensor, g: Tensor, held: Tensor, later: Tensor) -> HeldState:
    """Of a state and rows: keys (G, 1, R, K), what they `added` (G, M, V, R), and the logarithm g <= 0 (G, M, 1, R), or
    (G, 1, K, R) by column, of what each row has left of what was before it; `held` and `later` as `rows_held` and
    `rows_later` have them."""
    g = g * held
    decay = torch.exp(g.sum(3, keepdim=True).clamp(max=0.0))
    left = torch.exp(torch.matmul(g, later).clamp(max=0.0)) * held
    if g.shape[2] == 1:
        return HeldState(state, decay, added * left, keys)
    return HeldState(state, decay, added, keys * left.transpose(2, 3))


def held_in(
    buffer: Buffer,
    state: LinearState,
    sizes: tuple[int, int, int, int],
    given: "LayerInputs",
    by_column: bool = False,
) -> HeldState:
    """The states of N layers as the rows that are held leave them, (N * G, M, V, K) of the `sizes` G, M, V and K: their
    buffer has the parts `keys`, `added` and `decays`, these of each head or `by_column`."""
    if given.held is None or given.later is None:
        raise ValueError("a call on rows must say which of them are held")
    G, M, V, K = sizes
    N, R = buffer.rows.shape[:2]
    keys = buffer.part("keys").view(N, R, G, K).transpose(1, 2).reshape(N * G, 1, R, K)
    added = buffer.part("added").transpose(1, 2).reshape(N * G, M, V, R)
    g = buffer.part("decays").transpose(1, 2).reshape(N * G, *((1, K) if by_column else (M, 1)), R)
    return held_state(state.view(N * G, M, V, K), keys, added, g, given.held, given.later)


def leave_in(buffer: Buffer, keys: Tensor, added: Tensor, g: Tensor) -> None:
    """A call's own rows of these parts, each with its tokens last."""
    for name, row in (("keys", keys), ("added", added), ("decays", g)):
        buffer.leave(name, row.reshape(1, -1, row.shape[-1]).transpose(1, 2))


def since_commit(rows: int, taps: int, base: Tensor, position: Tensor) -> dict[str, Tensor]:
    """What `LayerInputs` says of a buffer of so many rows, and of a convolution's tail of `taps` inputs where there is
    one, by name: of a call at `position` (1,) behind a commit at `base` (1,)."""
    found = {"held": rows_held(rows, base, position), "later": rows_later(rows, base)}
    return found | ({"before": tail_of_rows(taps, rows, base, position)} if taps else {})


def rows_held(rows: int, base: Tensor, position: Tensor) -> Tensor:
    """(1, 1, 1, R) float32: 1 for the rows that hold a position from `base` (1,) on and before `position` (1,)."""
    return (_since(rows, base) < position - base).float().view(1, 1, 1, rows)


def rows_later(rows: int, base: Tensor) -> Tensor:
    """(1, 1, R, R) float32: 1 in row r and column j where row r holds a later position than row j."""
    since = _since(rows, base)
    return (since.unsqueeze(1) > since.unsqueeze(0)).float().view(1, 1, rows, rows)


def tail_of_rows(taps: int, rows: int, base: Tensor, position: Tensor) -> Tensor:
    """(1, T, T + R) float32: 1 where row t of the tail before `position` (1,), of `taps` T inputs, is row r of the tail
    at `base` (1,) and the buffer's rows behind it."""
    wanted = position - taps + torch.arange(taps, dtype=torch.int32, device=base.device)  # positions, (T,)
    is_held = (wanted >= base).to(torch.int32)
    column = is_held * (taps + (wanted + rows * taps) % rows) + (1 - is_held) * (wanted - base + taps)
    row = torch.arange(taps + rows, dtype=torch.int32, device=base.device)
    return (row.unsqueeze(0) == column.unsqueeze(1)).float().unsqueeze(0)


def _since(rows: int, base: Tensor) -> Tensor:
    """How many positions behind `base` (1,) the one is that each row holds, (R,)."""
    row = torch.arange(rows, dtype=torch.int32, device=base.device)
    return (row + rows - base % rows) % rows
