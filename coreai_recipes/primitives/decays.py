"""What is left of what tokens wrote to a state that fades by a factor of each: exp of sums of logarithms. A leaf."""

from typing import NamedTuple

import torch
from torch import Tensor


class Decays(NamedTuple):
    """Of a chunk of S tokens: `between` tokens j and i (..., S, S), 0 where i does not see j; `since` the chunk's start
    and `left` at its end (..., 1, S)."""

    between: Tensor
    since: Tensor
    left: Tensor


def decays(g: Tensor) -> Decays:
    """Of logarithms g <= 0, (..., 1, S)."""
    tokens = g.shape[3]
    seen = torch.ones(tokens, tokens, dtype=g.dtype, device=g.device).triu()  # (j, i): 1 where token i sees token j
    later = seen.triu(1)
    # sums of what lies between two tokens, not differences of sums from the start: those of a head that forgets fast
    # are large, and what is left of them is wrong in float16, and in float32 by 1e-4
    between = torch.matmul(g * later, seen)  # (..., S, S)
    # the bound is for who reads the program: that none of these exp is infinite
    return Decays(
        torch.exp(between.clamp(max=0.0)) * seen,
        torch.exp(torch.matmul(g, seen).clamp(max=0.0)),
        torch.exp(torch.matmul(g, later.transpose(0, 1)).clamp(max=0.0)),
    )
