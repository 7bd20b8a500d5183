"""The figure of a parity test, written apart from the package's own so that neither can hide the other's mistake."""

import math

from torch import Tensor


def psnr(ref: Tensor, x: Tensor) -> float:
    """20 log10(max|ref|) - 10 log10(mean((ref - x)^2)) in dB; inf when identical, -inf when x is not finite."""
    if ref.shape != x.shape:
        raise ValueError(f"{tuple(x.shape)} cannot be compared with {tuple(ref.shape)}")
    error = (ref.double() - x.double()).square().mean().item()
    if not math.isfinite(error):
        return -math.inf
    return math.inf if error == 0 else 20 * math.log10(ref.abs().max().item()) - 10 * math.log10(error)
