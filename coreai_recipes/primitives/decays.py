"""What is left of what tokens wrote to a state that fades by factors of each: exp of sums of logarithms.

A matrix fades by one factor of each token (`Decays`), or each of its K columns by one of its own (`ColumnDecays`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from coreai_recipes.primitives.linear_state import LinearState, read_faded


class Decays(NamedTuple):
    """Of a chunk of S tokens: `between` tokens j and i (..., S, S), 0 where i does not see j; `since` the chunk's start
    and `left` at its end (..., 1, S)."""

    between: Tensor
    since: Tensor
    left: Tensor

    def scores(self, k: Tensor, q: Tensor) -> Tensor:
        """What query i (G, 1, K, S) finds of key j (G, 1, K, S), (..., S, S)."""
        return torch.matmul(k.transpose(2, 3), q) * self.between

    def read(self, state: LinearState, x: Tensor) -> Tensor:
        """What x (G, 1, K, S) finds of the chunk's first state, (G, M, V, S)."""
        return read_faded(state, x, self.since)

    def advanced(self, state: LinearState, added: Tensor, k: Tensor) -> LinearState:
        """The state behind the chunk, whose tokens have `added` (G, M, V, S) at their keys (G, 1, K, S)."""
        return state.advanced(self.since[..., -1:], added * self.left, k.transpose(2, 3))


class ColumnDecays(NamedTuple):
    """Of a chunk of S tokens, for each of K columns: `since` the chunk's start and `left` at its end (..., K, S).

    What is left between tokens j and i is no product of a factor of each that would not overflow, and a value for each
    pair and column would be S times as many as there are. So pairs are taken by the smallest block of 2, 4, 8 .. tokens
    that holds both, j in its first half and i in its second: `halves` has for each of these sizes what is left of a
    token at the middle of its block, or there is of the middle at a token (..., K, S), and which pairs it is for
    (S, S). No factor exceeds 1.
    """

    halves: tuple[tuple[Tensor, Tensor], ...]
    since: Tensor
    left: Tensor

    def scores(self, k: Tensor, q: Tensor) -> Tensor:
        """As `Decays` has it, (G, 1, S, S)."""
        tokens = k.shape[3]
        found = (k * q).sum(2, keepdim=True) * torch.eye(tokens, dtype=k.dtype, device=k.device)
        for factors, pairs in self.halves:
            found = found + torch.matmul((k * factors).transpose(2, 3), q * factors) * pairs
        return found

    def read(self, state: LinearState, x: Tensor) -> Tensor:
        """As `Decays` has it."""
        return read_faded(state, x, self.since)

    def advanced(self, state: LinearState, added: Tensor, k: Tensor) -> LinearState:
        """As `Decays` has it."""
        return state.advanced(self.since[..., -1:], added, (k * self.left).transpose(2, 3))


def decays(g: Tensor) -> Decays:
    """Of logarithms g <= 0, (..., 1, S)."""
    tokens = g.shape[3]
    seen = torch.ones(tokens, tokens, dtype=g.dtype, device=g.device).triu()  # (j, i): 1 where token i sees token j
    later = seen.triu(1)
    # sums of what lies between two tokens, not differences of sums from the start: those of a head that forgets fast
    # are large, and what is left of them is wrong in float16, and in float32 by 1e-4
    between = torch.matmul(g * later, seen)  # (..., S, S)
    # the bound is for who reads the program: that none of these exp is infinite
    return Decays(torch.exp(between.clamp(max=0.0)) * seen, _left_of(g, seen), _left_of(g, later.transpose(0, 1)))


def column_decays(g: Tensor) -> ColumnDecays:
    """Of logarithms g <= 0, (..., K, S)."""
    tokens = g.shape[3]
    seen = torch.ones(tokens, tokens, dtype=g.dtype, device=g.device).triu()
    later, place = seen.triu(1), torch.arange(tokens, device=g.device)
    halves, half = [], 1
    while half < tokens:
        is_first, of = place // half % 2 == 0, place // half
        same = (of.unsqueeze(1) == of.unsqueeze(0)).to(g.dtype)  # (t, i): token t is in token i's half
        sums = same * torch.where(is_first, later.transpose(0, 1), seen)
        pairs = (of.unsqueeze(1) + 1 == of.unsqueeze(0)) & is_first.unsqueeze(1)
        halves.append((_left_of(g, sums), pairs.to(g.dtype)))
        half *= 2
    return ColumnDecays(tuple(halves), _left_of(g, seen), _left_of(g, later.transpose(0, 1)))


def _left_of(g: Tensor, sums: Tensor) -> Tensor:
    return torch.exp(torch.matmul(g, sums).clamp(max=0.0))
