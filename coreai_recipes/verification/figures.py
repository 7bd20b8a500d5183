"""The two figures of every comparison: PSNR over the whole tensor, and SNR_min, the least over its positions."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from coreai_recipes.verification.report import Figures

BLOCK_NUMBERS = 1 << 22


def psnr(ref: Tensor, x: Tensor) -> float:
    """20 log10(max|ref|) - 10 log10(mean((ref - x)^2)) in dB: inf when identical, -inf when x is not finite."""
    error, peak = 0.0, 0.0
    for one, other in _blocks(ref, x):
        error += (one - other).square().sum().item()
        peak = max(peak, one.abs().max().item())
    if not math.isfinite(error):
        return -math.inf
    if error == 0:
        return math.inf
    return -math.inf if peak == 0 else 20 * math.log10(peak) - 10 * math.log10(error / ref.numel())


def snr_min(ref: Tensor, x: Tensor) -> float:
    """The smallest over positions of 10 log10(sum ref^2 / sum (ref - x)^2) in dB; ref and x are (S, features).

    One huge token hides the others from a PSNR, never from this. A position that is identical counts as inf.
    """
    least = math.inf
    for one, other in _blocks(ref, x):
        error = (one - other).square().sum(-1)
        if not torch.isfinite(error).all():
            return -math.inf
        ratio = 10 * torch.log10(one.square().sum(-1) / error)
        least = min(least, torch.where(error == 0, math.inf, ratio).min().item())
    return least


def divergence(ref: Tensor, x: Tensor) -> Tensor:
    """KL(ref || x) in nats at each position, of the distributions whose logits (S, V) these are."""
    found = []
    for one, other in _blocks(ref, x):
        expected = one.log_softmax(-1)
        found.append((expected.exp() * (expected - other.log_softmax(-1))).sum(-1))
    return torch.cat(found)


def _blocks(ref: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in float64, some positions at a time: of a large vocabulary's logits that is eight times what is held."""
    rows = max(1, BLOCK_NUMBERS // max(1, ref[:1].numel()))
    for one, other in zip(torch.split(ref, rows), torch.split(x, rows), strict=True):
        yield one.double(), other.double()


def compare(tensor: str, ref: Tensor, x: Tensor) -> Figures:
    """The figures of `x` against `ref`, both (S, features). Raises ValueError when their shapes differ."""
    if ref.shape != x.shape:
        raise ValueError(f"{tensor} is {tuple(x.shape)}, its reference {tuple(ref.shape)}")
    return Figures(tensor, psnr(ref, x), snr_min(ref, x))
