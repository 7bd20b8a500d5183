"""Scalars that survive float16. A leaf."""

from functools import cache

import numpy as np
from torch import Tensor


def scaled(x: Tensor, factor: float) -> Tensor:
    """x * factor, exact to 1e-7 even when the program's constants are float16.

    A factor such as 128^-0.5 is off by 1e-4 in float16, which alone costs 40 dB of the logits; two float16 constants
    whose product is the factor do not. One multiplication when the factor is representable, none when it is 1.
    """
    for part in _float16_factors(factor):
        x = x * part
    return x


@cache
def _float16_factors(factor: float) -> tuple[float, ...]:
    if factor == 1.0:
        return ()
    if float(np.float16(factor)) == factor:
        return (factor,)
    first = np.arange(1024, 2048) / 1024  # every float16 mantissa in [1, 2)
    second = (factor / first).astype(np.float16).astype(np.float64)
    best = int(np.abs(first * second / factor - 1).argmin())
    return (float(second[best]), float(first[best]))
