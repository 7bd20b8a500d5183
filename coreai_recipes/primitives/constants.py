"""Scalars that survive float16. A leaf."""

from functools import cache

import numpy as np
from torch import Tensor

# Between these a quotient by two mantissas is a normal float16, with all of its 11 bits.
SMALLEST, LARGEST = 2.0**-12, 2.0**15
TOLERANCE = 1e-6


def scaled(x: Tensor, factor: float) -> Tensor:
    """x * factor, exact to 1e-6 even when the program's constants are float16.

    A factor such as 128^-0.5 is off by 1e-4 in float16, which alone costs 40 dB of the logits; the product of a few
    float16 constants is not. One multiplication when the factor is representable, none when it is 1, else two or
    three: the nearest product of two is off by up to 6e-6.
    """
    for part in _float16_factors(factor):
        x = x * part
    return x


def clipped(x: Tensor, limit: float) -> Tensor:
    """x within [-limit, limit], exact to 1e-6 even when the program's constants are float16."""
    if limit <= LARGEST and float(np.float16(limit)) == limit:
        return x.clamp(-limit, limit)
    return scaled(scaled(x, 1 / limit).clamp(-1.0, 1.0), limit)


def at_least(x: Tensor, limit: float) -> Tensor:
    """x >= 0, or `limit` <= 1 where x is less, exact to 1e-6 even when the program's constants are float16."""
    below = x.clamp(max=1.0)  # what is multiplied by 1 / limit: a large x would overflow
    return scaled(scaled(below, 1 / limit).clamp(min=1.0), limit) + (x - below)


@cache
def _float16_factors(factor: float) -> tuple[float, ...]:
    if factor == 1.0:
        return ()
    if abs(factor) <= LARGEST and float(np.float16(factor)) == factor:
        return (factor,)
    if abs(factor) > LARGEST:
        return (*_float16_factors(factor / LARGEST), LARGEST)
    if abs(factor) < SMALLEST:
        return (*_float16_factors(factor / SMALLEST), SMALLEST)
    mantissas = np.arange(1024, 2048) / 1024  # every float16 mantissa in [1, 2)
    for third in mantissas:  # 1 first: two factors are often enough
        second = (factor / third / mantissas).astype(np.float16).astype(np.float64)
        error = np.abs(second * mantissas * third / factor - 1)
        best = int(error.argmin())
        if error[best] <= TOLERANCE:
            break
    return tuple(float(part) for part in (second[best], mantissas[best], third) if part != 1.0)
