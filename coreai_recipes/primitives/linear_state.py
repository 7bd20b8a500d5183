"""The matrix that a linear recurrence keeps, S <- decay S + added keys, in float16 or as two float16 numbers.

A float16 state does not forget where 1 - decay is less than 2^-12, and increments below half of its step vanish. The
sum of two halves, what the first has lost being the second, is advanced on an island of float32 (`float32`).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# what is between two islands is rounded, and no pass may think otherwise: a value of float16, and nothing else
torch.library.define("coreai_recipes::halved", "(Tensor x) -> Tensor")
torch.library.impl("coreai_recipes::halved", "CompositeImplicitAutograd", lambda x: x.clone())


@dataclass(frozen=True)
class LinearState:
    """(G, M, V, K); the state is `high` alone, or the sum of both."""

    high: Tensor
    low: Tensor | None = None

    def read(self, x: Tensor) -> Tensor:
        """The state times x (G, 1, K, S), (G, M, V, S)."""
        found = torch.matmul(self.high, x)
        return found if self.low is None else found + torch.matmul(self.low, x)

    def advanced(self, decay: Tensor, added: Tensor, keys: Tensor) -> "LinearState":
        """decay (G, M, 1, 1), or (G, 1, K, 1) of each column; added (G, M, V, S) at keys (G, 1, S, K)."""
        decay = decay if decay.shape[2] == 1 else decay.transpose(2, 3)
        if self.low is None:
            return LinearState(self.high * decay + torch.matmul(added, keys))
        ours = torch.ops.coreai_recipes
        before = ours.widened(self.high) + ours.widened(self.low)
        whole = before * ours.widened(decay) + torch.matmul(ours.widened(added), ours.widened(keys))
        high = ours.halved(ours.narrowed(whole, self.high))
        return LinearState(high, ours.narrowed(whole - ours.widened(high), self.high))

    def view(self, *shape: int) -> "LinearState":
        return LinearState(self.high.view(*shape), None if self.low is None else self.low.view(*shape))


class Readable(Protocol):
    """A state, or what rows make of one."""

    def read(self, x: Tensor) -> Tensor: ...


def read_faded(state: Readable, x: Tensor, decay: Tensor) -> Tensor:
    """What x (G, 1, K, S) finds of a state that has faded, (G, M, V, S): by `decay` (G, M, 1, S), or (G, 1, K, S) of
    each column."""
    return decay * state.read(x) if decay.shape[2] == 1 else state.read(decay * x)
