"""Where keys and values of earlier calls are kept, and which of them each query sees.

A full cache holds position p in row p. A sliding one is a ring: position p is in row p mod rows, with rows = window +
rollback, and masks are by absolute position, so that calling again up to `rollback` positions earlier finds every key
that it needs. Padding is written into a full cache, where it is never seen before it is overwritten; never into a ring.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Finite, so that no score becomes NaN, and far below any score: exp(-1e4) is zero in every precision.
HIDDEN = -1e4


class Cache(Protocol):
    """What an attention asks of its cache."""

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take the call's own keys and values (G, S, D); give those to attend to, (1, G, K, D)."""

    def read(self) -> tuple[Tensor, Tensor]:
        """What a layer that shares the cache attends to, (1, G, K, D)."""


class NoCache:
    """The whole sequence at once: what is given is what is seen."""

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._given = keys.unsqueeze(0), values.unsqueeze(0)
        return self._given

    def read(self) -> tuple[Tensor, Tensor]:
        return self._given


@dataclass
class SharedCache:
    """One layer's rows of the states `keys` and `values` (L, G, rows, D), as the call has left them.

    `layer` (1,) is the place in the states of the layer that owns the rows.
    """

    key_state: Tensor
    value_state: Tensor
    layer: Tensor

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("a layer that shares a cache has no keys and values of its own")

    def read(self) -> tuple[Tensor, Tensor]:
        return self._rows(self.key_state), self._rows(self.value_state)

    def _rows(self, state: Tensor) -> Tensor:
        at = self.layer[0]
        # the view says what the size of a slice is whose place is known only to the linker, which then drops it
        return state[at : at + 1].view(1, *state.shape[1:])  # (1, G, rows, D)


@dataclass
class FullCache(SharedCache):
    """A layer's rows written from row `position` (1,) on, which is that of the call's first token."""

    position: Tensor

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._write(self.key_state, keys), self._write(self.value_state, values)

    def _write(self, state: Tensor, new: Tensor) -> Tensor:
        at, first = self.layer[0], self.position[0]
        state[at : at + 1, :, first : first + new.shape[1]] = new.unsqueeze(0)
        return self._rows(state)


@dataclass
class RingCache(SharedCache):
    """A layer's rows of a ring. `place` is the row to write (1,) when one token comes, else the source of each row.

    With several tokens, row r of the ring afterwards is row `place[r]` of the old rows followed by the new ones: the
    attention must see the ring as it was, because the new tokens overwrite keys that the first of them still need.
    """

    place: Tensor

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._seen = self._write(self.key_state, keys), self._write(self.value_state, values)
        return self._seen

    def read(self) -> tuple[Tensor, Tensor]:
        return self._seen

    def _write(self, state: Tensor, new: Tensor) -> Tensor:
        at = self.layer[0]
        if new.shape[1] == 1:
            row = self.place[0]
            state[at : at + 1, :, row : row + 1] = new.unsqueeze(0)
            return self._rows(state)
        seen = torch.cat((self._rows(state), new.unsqueeze(0)), 2)  # (1, G, rows + S, D)
        state[at : at + 1] = seen.index_select(2, self.place)
        return seen


def mask(key_positions: Tensor, query_positions: Tensor, window: int | None, keys_last: bool = False) -> Tensor:
    """(1, K, 1, S) float32: 0 where a query sees a key, HIDDEN where it is later, outside the window or empty (< 0).

    With `keys_last` (1, 1, S, K).
    """
    of_keys, of_queries = (0, 1) if keys_last else (1, 0)
    keys, queries = key_positions.unsqueeze(of_keys), query_positions.unsqueeze(of_queries)
    seen = (keys >= 0) & (keys <= queries)
    if window is not None:
        seen = seen & (keys > queries - window)
    # arithmetic, because where() would store two constants of (K, S)
    return ((1 - seen.float()) * HIDDEN).unsqueeze(0).unsqueeze(1 if keys_last else 2)


def draft_mask(rows: int, window: int | None, seen: Tensor, keys_last: bool = False) -> Tensor:
    """(1, K, 1, 1), or (1, 1, 1, K), of a draft's one query over the target's rows, of which positions before `seen`
    (1,) are to be seen.

    Of a ring these are the last window + 1: transformers counts the window of a draft inclusively
    (masking_utils, `sliding_window_bidirectional_overlay`, flipped).
    """
    if window is None:
        return mask(full_key_positions(rows, seen.device), seen - 1, None, keys_last)
    return mask(ring_key_positions(rows, seen), seen - 1, window + 1, keys_last)


def full_key_positions(rows: int, device: torch.device) -> Tensor:
    """The position that each row of a full cache holds, (rows,)."""
    return torch.arange(rows, dtype=torch.int32, device=device)


def ring_key_positions(rows: int, next_position: Tensor) -> Tensor:
    """The position that each row of a ring holds when `next_position` (1,) is the next to be written, (rows,).

    Row r holds the last position before next_position that is r mod rows, negative where none was written yet.
    """
    row = torch.arange(rows, dtype=torch.int32, device=next_position.device)
    return next_position - 1 - (next_position + rows - 1 - row) % rows


def ring_sources(rows: int, position: Tensor, count: Tensor) -> Tensor:
    """For each row of a ring, its place among the old rows followed by the new tokens, (rows,).

    The new tokens have positions `position` .. `position + count - 1`; row r takes the last of them that is r mod rows,
    and keeps what it has when there is none.
    """
    row = torch.arange(rows, dtype=torch.int32, device=position.device)
    token = ring_key_positions(rows, position + count) - position
    is_new = (token >= 0).to(torch.int32)
    return row + is_new * (rows + token - row)
