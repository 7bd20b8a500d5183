"""The scan of a recurrence in which each number of the state fades by a factor of its own (Mamba-1, RG-LRU). A leaf.

    h_t = exp(g_t) h_t-1 + x_t

Where a whole head fades by one factor, a chunk of tokens is a few matrix products (`state_space`); here there are none.
Behind step s of Hillis and Steele's scan each value holds what 2 s tokens have written, x <- x + exp(g) shift(x, s) and
g <- g + shift(g, s): log2(S) steps, each of all tokens at once. What is left of a token is exp of a sum of logarithms,
not a product of factors, which have lost their digits in float16 where they are near 1.
"""

import torch
from torch import Tensor


def scan(x: Tensor, g: Tensor, before: Tensor, chunk: int) -> Tensor:
    """x and g <= 0, (..., S), on a state `before`, (..., 1) -> the state behind each token, (..., S).

    It goes by chunks of so many tokens, one on the state that the last one leaves.
    """
    found = []
    for start in range(0, x.shape[-1], chunk):
        part = slice(start, min(start + chunk, x.shape[-1]))
        found.append(_chunk(x[..., part], g[..., part], before))
        before = found[-1][..., -1:]
    return found[0] if len(found) == 1 else torch.cat(found, -1)


def _chunk(x: Tensor, g: Tensor, before: Tensor) -> Tensor:
    tokens, first = x.shape[-1], x[..., :1] + _left(g[..., :1]) * before
    if tokens == 1:
        return first
    x, g, step = torch.cat((first, x[..., 1:]), -1), g[..., 1:], 1
    while step < tokens:  # g[i] is the sum over the `step` tokens up to the token i + step
        x = torch.cat((x[..., :step], x[..., step:] + _left(g) * x[..., :-step]), -1)
        if 2 * step < tokens:
            g = g[..., step:] + g[..., :-step]
        step *= 2
    return x


def _left(g: Tensor) -> Tensor:
    # the bound is for who reads the program: that none of these exp is infinite
    return torch.exp(g.clamp(max=0.0))
