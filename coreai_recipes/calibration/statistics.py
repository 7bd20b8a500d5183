"""What came into a matrix, summed over a text: the Hessian of its squared error, and what a fit takes of it.

An output's error is e H e^T for an error e of its weights, H being the mean of x x^T over the inputs x. Tokens of a
sink of attention, whose inputs may be a thousand times as large as others', count for no more than a few others: all
other directions would be lost in them. Sums are float64, and of blocks whose number does not depend on threads.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

CAP = 4.0  # medians of a token's squared size
SHRINKAGE = 0.2  # towards the diagonal: a text of some thousand tokens says little of 1e6 products
LEAST_SHARE = 1e-4  # of the mean diagonal, of an input that the text leaves at zero
STRIPE = 256
WIDEST_IN_FLOAT64 = 8192  # inputs: of more, factors in float64 would be several GB

# runs functions, in threads or one after the other
Runner = Callable[[Iterable[Callable[[], None]]], None]


class Moments:
    """The sum of x x^T over inputs, float64: the lower triangle, in stripes of rows."""

    def __init__(self, width: int) -> None:
        self.width, self.tokens = width, 0
        ends = [min(first + STRIPE, width) for first in range(0, width, STRIPE)]
        self._stripes = [torch.zeros(end - index * STRIPE, end, dtype=torch.float64) for index, end in enumerate(ends)]

    def add(self, inputs: Tensor, run: Runner) -> None:
        """Inputs (I, tokens) float32; an input of zeros is none."""
        sizes = inputs.square().sum(0)
        present = sizes > 0
        if not bool(present.all()):
            inputs, sizes = inputs[:, present], sizes[present]
        if not len(sizes):
            return
        inputs = inputs * (CAP * sizes.median() / sizes).clamp(max=1).sqrt()
        self.tokens += len(sizes)

        def add_to(stripe: Tensor) -> None:
            first, end = stripe.shape[1] - stripe.shape[0], stripe.shape[1]
            stripe += torch.mm(inputs[first:end], inputs[:end].t())

        run([partial(add_to, stripe) for stripe in self._stripes])

    def hessian(self) -> Tensor:
        """The mean (I, I), float64; the sum is used up, stripe by stripe: both at once would be another GB in a layer
        of 12,288 inputs."""
        dtype = torch.float64 if self.width <= WIDEST_IN_FLOAT64 else torch.float32
        found = torch.empty(self.width, self.width, dtype=dtype)
        self._stripes.reverse()
        while self._stripes:
            stripe = self._stripes.pop().div_(max(self.tokens, 1))
            first, end = stripe.shape[1] - stripe.shape[0], stripe.shape[1]
            square = stripe[:, first:]
            square.copy_(square.tril() + square.tril(-1).t())
            found[first:end, :end] = stripe
            found[:first, first:end] = stripe[:, :first].t()
        return found


@dataclass(frozen=True)
class Statistics:
    """Of the inputs of one matrix, or of several that share them; `hessian` (I, I) float64."""

    hessian: Tensor
    tokens: int

    @cached_property
    def importance(self) -> Tensor:
        """Of each input's weights, (I,) float32, one in the mean."""
        diagonal = self.hessian.diagonal()
        mean = diagonal.mean()
        if mean <= 0:
            return torch.ones(len(diagonal))
        return (diagonal / mean).clamp(min=LEAST_SHARE).float()

    @cached_property
    def shrunk(self) -> Tensor:
        """The Hessian, float32, its products shrunk, and something on the diagonal where an input is always zero."""
        return self._shrink(self.hessian.float() if self.hessian.dtype == torch.float64 else self.hessian.clone())

    def _shrink(self, found: Tensor) -> Tensor:
        """In place."""
        diagonal = found.diagonal().clone()
        mean = float(diagonal.mean())
        found.mul_(1 - SHRINKAGE)
        found.diagonal().copy_(diagonal + (LEAST_SHARE * mean if mean > 0 else 1.0))
        return found

    @cached_property
    def order(self) -> Tensor:
        """Inputs, the most important first: what is chosen late pays for what was chosen before it."""
        return torch.argsort(self.hessian.diagonal(), descending=True, stable=True)

    @cached_property
    def feedback(self) -> Tensor:
        """F (I, I) float32 in `order`: an error e_i of input i is made up for by e_i F_ik in the weight of each k > i.

        H = V V^T with V upper triangular, so that e H e^T is the sum over k of (sum over i <= k of e_i V_ik)^2: F_ik is
        V_ik / V_kk (Chee et al., QuIP, 2023, who show that it is GPTQ's).
        """
        last_first = self.order.flip(0)
        ordered = torch.empty_like(self.hessian)
        for first in range(0, len(ordered), STRIPE):
            ordered[first : first + STRIPE] = self.hessian[last_first[first : first + STRIPE]][:, last_first]
        lower = torch.linalg.cholesky(self._shrink(ordered))
        del ordered
        diagonal = lower.diagonal().clone()
        found: Tensor = lower.div_(diagonal).float().flip(0, 1)
        return found

    def with_lookups(self) -> "Statistics":
        """As much again of inputs that are one and otherwise zero: what a table is for that is the head too."""
        found = self.hessian.clone()
        found.diagonal().add_(float(found.diagonal().mean()))
        return Statistics(found, self.tokens)
