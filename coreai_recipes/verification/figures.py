"""The two figures of every comparison, exactly as DESIGN.md states them."""

import math

import torch
from torch import Tensor

from coreai_recipes.verification.report import Figures


def psnr(ref: Tensor, x: Tensor) -> float:
    """20 log10(max|ref|) - 10 log10(mean((ref - x)^2)) in dB: inf when identical, -inf when x is not finite."""
    ref, x = ref.double(), x.double()
    if not torch.isfinite(x).all():
        return -math.inf
    error, peak = (ref - x).square().mean().item(), ref.abs().max().item()
    if error == 0:
        return math.inf
    return -math.inf if peak == 0 else 20 * math.log10(peak) - 10 * math.log10(error)


def snr_min(ref: Tensor, x: Tensor) -> float:
    """The smallest over positions of 10 log10(sum ref^2 / sum (ref - x)^2) in dB; ref and x are (S, features).

    One huge token hides the others from a PSNR, never from this. A position that is identical counts as inf.
    """
    ref, x = ref.double(), x.double()
    if not torch.isfinite(x).all():
        return -math.inf
    error = (ref - x).square().sum(-1)
    ratio = 10 * torch.log10(ref.square().sum(-1) / error)
    return torch.where(error == 0, math.inf, ratio).min().item()


def compare(tensor: str, ref: Tensor, x: Tensor) -> Figures:
    """The figures of `x` against `ref`, both (S, features). Raises ValueError when their shapes differ."""
    if ref.shape != x.shape:
        raise ValueError(f"{tensor} is {tuple(x.shape)}, its reference {tuple(ref.shape)}")
    return Figures(tensor, psnr(ref, x), snr_min(ref, x))
