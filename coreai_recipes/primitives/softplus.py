"""softplus in a form that float16 takes: an engine's own is log(1 + exp(x)), which is infinite from 11 on, and zero
where it is less than half of float16's step at 1. A leaf."""

import torch
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to 1e-7 of it in float32.

    It is max(x, 0) + log(1 + e), e = exp(-|x|), and log(1 + e) = 2 atanh(t), t = e / (2 + e) <= 1/3, by the first terms
    of Gauss' continued fraction, t / (1 - t^2 / (3 - 4 t^2 / (5 - ...))), whose constants are whole numbers.
    """
    e = torch.exp(-x.abs())
    t = e / (e + 2)
    s = t * t
    below = 9 - s * 25 / 11
    for number, factor in ((7, 16), (5, 9), (3, 4), (1, 1)):
        below = number - s * factor / below
    return torch.relu(x) + t * 2 / below
