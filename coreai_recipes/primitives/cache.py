"""Where keys and values of earlier calls are kept, and which of them each query sees.

A full cache holds position p in row p. A sliding one is a ring: position p is in row p mod rows, with rows = window +
rollback, and masks are by absolute position, so that calling again up to `rollback` positions earlier finds every key
that it needs. Padding is never written into a ring; into a full cache as zeros, which are overwritten before they are
seen.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from coreai_recipes.primitives.carried import Carried

# Finite, so that no score becomes NaN, and far below any score: exp(-1e4) is zero in every precision.
HIDDEN = -1e4


@dataclass(frozen=True)
class KeptRows:
    """What an attention declares to keep between calls: keys and values of all positions, or of the last `window`."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None


class Cache(Protocol):
    """What a layer asks of its cache; `carried` is what it hands from call to call besides rows."""

    carried: Carried

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take the call's own keys and values (G, S, D); give those to attend to, (1, G, K, D)."""

    def read(self) -> tuple[Tensor, Tensor]:
        """What a layer that shares the cache attends to, (1, G, K, D)."""


class NoCache:
    """The whole sequence at once: what is given is what is seen. Or no rows at all, in a layer that only carries."""

    def __init__(self, carried: Carried | None = None) -> None:
        self.carried = carried or Carried()

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._given = keys.unsqueeze(0), values.unsqueeze(0)
        return self._given

    def read(self) -> tuple[Tensor, Tensor]:
        return self._given


@dataclass
class SharedCache:
    """One layer's rows of its states (L, G, rows, D), as the call has left them.

    Its keys are at place `at` (1,) of `key_state`; its values at the same place of `value_state`, or at the next one of
    `key_state` where there is no other.
    """

    key_state: Tensor
    value_state: Tensor | None
    at: Tensor
    carried: Carried = field(default_factory=Carried, kw_only=True)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("a layer that shares a cache has no keys and values of its own")

    def read(self) -> tuple[Tensor, Tensor]:
        if self.value_state is None:
            return _rows(self.key_state, self.at[0]), _rows(self.key_state, self.at[0] + 1)
        return _rows(self.key_state, self.at[0]), _rows(self.value_state, self.at[0])

    def _parts(self, keys: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each state, and the call's own keys, values or both (N, G, S, D) that go into it."""
        new = keys.unsqueeze(0), values.unsqueeze(0)
        if self.value_state is None:
            return [(self.key_state, torch.cat(new))]
        return [(self.key_state, new[0]), (self.value_state, new[1])]


@dataclass
class HandedCache:
    """Another layer's keys and values (1, G, K, D), which a package before this one has returned."""

    keys: Tensor
    values: Tensor
    carried: Carried = field(default_factory=Carried)

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("a layer that shares a cache has no keys and values of its own")

    def read(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


@dataclass
class FunctionalCache(SharedCache):
    """A layer's rows of tensors that the host keeps (L, G, rows, D): they are read and never written. What a call adds
    is `new`, (N, G, S, D) for each tensor, and the host puts it into the rows of its positions.

    One token, or any into a full cache, stand from row `first` (1,) on before the attention looks; several into a ring
    behind it, as in `RingCache`. `placement` says what the ring becomes, where other layers read it in the same call.
    """

    first: Tensor | None = None
    padding: Tensor | None = None
    placement: "Placement | None" = None
    new: tuple[Tensor, ...] = ()

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        real = [(state, _real(new, self.padding)) for state, new in self._parts(keys, values)]
        parts = [(_rows(state, self.at[0], new.shape[0]), new) for state, new in real]
        self.new = tuple(new for _, new in parts)
        if self.first is None:
            if self.placement is not None:
                self._left = _split([self.placement.placed(old, new) for old, new in parts])
            return _split([torch.cat((old, new), 2) for old, new in parts])  # (N, G, rows + S, D)
        self._left = _split([_with_rows(old, new, self.first[0]) for old, new in parts])
        return self._left

    def read(self) -> tuple[Tensor, Tensor]:
        return self._left


def _with_rows(old: Tensor, new: Tensor, first: Tensor) -> Tensor:
    """Rows (N, G, rows, D), those from `first` on replaced by the new ones (N, G, S, D)."""
    rows = old.clone()
    rows[:, :, first : first + new.shape[2]] = new
    return rows


def _split(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and values (1, G, K, D) of a tensor for both, or of one for each."""
    return (parts[0][:1], parts[0][1:]) if len(parts) == 1 else (parts[0], parts[1])


def _rows(state: Tensor, at: Tensor, count: int = 1) -> Tensor:
    # the view says what the size of a slice is whose place is known only to the linker, which then drops it
    return state[at : at + count].view(count, *state.shape[1:])  # (count, G, rows, D)


@dataclass
class RowCache(SharedCache):
    """A layer's rows written from row `first` (1,) on: a full cache's with any tokens, and a ring's with one.

    `padding` (1, 1, S, 1) is 1 for tokens that are none; they are written as zeros, for a NaN is hidden by no mask.
    """

    first: Tensor
    padding: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        at, first = self.at[0], self.first[0]
        for state, new in self._parts(keys, values):
            count, _, tokens, _ = new.shape
            state[at : at + count, :, first : first + tokens] = _real(new, self.padding)
        return self.read()


@dataclass
class OpenCache(SharedCache):
    """A layer's rows of states (L, 1, G, rows, D) that a host lengthens as a text grows: of their rows the first `seen`
    hold a position when the call ends, and no more of them are looked at."""

    seen: int

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        at = self.at[0]
        for state, new in self._parts(keys, values):
            count, _, tokens, _ = new.shape
            state[at : at + count, :, :, self.seen - tokens : self.seen] = new.unsqueeze(1)
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        if self.value_state is None:
            raise TypeError("values have a state of their own")
        return self._seen(self.key_state), self._seen(self.value_state)

    def _seen(self, state: Tensor) -> Tensor:
        at, (_, _, heads, _, width) = self.at[0], state.shape
        return state[at : at + 1, :, :, : self.seen].view(1, heads, self.seen, width)


@dataclass
class RingCache(SharedCache):
    """A layer's rows of a ring, of which several tokens overwrite those that `placement` says.

    The attention must see the ring as it was, because the new tokens overwrite keys that the first of them still need.
    """

    placement: "Placement"

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        parts = [
            (state, _rows(state, self.at[0], new.shape[0]), _real(new, self.placement.padding))
            for state, new in self._parts(keys, values)
        ]
        self._seen = _split([torch.cat((old, new), 2) for _, old, new in parts])  # (N, G, rows + S, D)
        for state, old, new in parts:
            state[self.at[0] : self.at[0] + new.shape[0]] = self.placement.placed(old, new)
        return self._seen

    def read(self) -> tuple[Tensor, Tensor]:
        return self._seen


@dataclass(frozen=True)
class Placement:
    """What becomes of a ring when several tokens come, as numbers 0 and 1: row r afterwards is row r of the old ones
    where `kept` (1, 1, rows, 1), plus token t where `put` (1, 1, rows, S); `padding` (1, 1, S, 1) is no token."""

    put: Tensor
    kept: Tensor
    padding: Tensor

    def placed(self, old: Tensor, new: Tensor) -> Tensor:
        """The ring (N, G, rows, D) with the new tokens (N, G, S, D) in it."""
        # a product, because a gather by indices that a call computes leaves the engine; each row is one token's exactly
        return old * self.kept + torch.matmul(self.put, new)


def _real(new: Tensor, padding: Tensor | None) -> Tensor:
    """Keys or values (1, G, S, D) with zeros for padding: selected, because 0 x inf is NaN."""
    return new if padding is None else new.masked_fill(padding > 0, 0.0)


def padding_of(queries: int, count: Tensor) -> Tensor:
    """(1, 1, S, 1) float32: 1 for the tokens of a call behind its `count` (1,) real ones."""
    tokens = torch.arange(queries, dtype=torch.int32, device=count.device).view(1, 1, -1, 1)
    return (tokens >= count).float()


def last_of(x: Tensor, count: Tensor) -> Tensor:
    """x (N, C, 1, S) of the last of `count` (1,) real tokens, (N, C, 1, 1): zeros in place of the others, summed."""
    tokens = torch.arange(x.shape[3], dtype=torch.int32, device=x.device).view(1, 1, 1, -1)
    return x.masked_fill(tokens != count - 1, 0.0).sum(3, keepdim=True)


def mask(
    key_positions: Tensor,
    query_positions: Tensor,
    window: int | None,
    keys_last: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """(1, K, 1, S) float32: 0 where a query sees a key, HIDDEN where it is later, outside the window, in another
    chunk or empty (< 0).

    With `keys_last` (1, 1, S, K).
    """
    of_keys, of_queries = (0, 1) if keys_last else (1, 0)
    keys, queries = key_positions.unsqueeze(of_keys), query_positions.unsqueeze(of_queries)
    seen = (keys >= 0) & (keys <= queries)
    if window is not None:
        seen = seen & (keys > queries - window)
    if chunk is not None:  # what is not later and lies behind the start of the query's chunk
        seen = seen & (keys >= queries - queries % chunk)
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


def ring_placement(rows: int, position: Tensor, count: Tensor, padding: Tensor) -> Placement:
    """Where the tokens of a call go, which have positions `position` .. `position + count - 1`: row r takes the last of
    them that is r mod rows, and keeps what it has when there is none."""
    token = ring_key_positions(rows, position + count) - position  # (rows,), negative where there is none
    token = token.view(1, 1, rows, 1)
    tokens = torch.arange(padding.shape[2], dtype=torch.int32, device=position.device).view(1, 1, 1, -1)
    return Placement((token == tokens).float(), (token < 0).float(), padding)
