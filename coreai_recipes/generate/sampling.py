"""Which token comes next."""

from math import isnan
from typing import TYPE_CHECKING

from coreai_recipes.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Sampler:
    """Greedy without a temperature; else drawn from the smallest set of tokens whose probabilities reach `top_p`.

    The same seed gives the same tokens; without one each sampler draws its own.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        problems = []
        if not 0 <= temperature < float("inf"):
            problems.append(f"temperature {temperature} is not a number from 0 on; 0 is greedy")
        if not 0 <= top_p <= 1:
            problems.append(f"top_p {top_p} is not in [0, 1]")
        if seed is not None and not 0 <= seed < 1 << 64:
            problems.append(f"seed {str(seed)[:40]} is not in [0, 2**64): leave it out to draw anew each time")
        UserError.collect(problems)
        self.temperature = temperature
        self.top_p = top_p
        self.seed = seed
        self._generator: Generator | None = None

    def pick(self, logits: "Tensor") -> int:
        """The id of one token from its logits (V,), or as the package chose it, (1,). Raises UserError when logits are
        NaN or all infinite."""
        if not logits.is_floating_point():
            return int(logits)
        best, token = logits.float().max(0)
        if isnan(highest := best.item()) or abs(highest) == float("inf"):
            raise UserError(f"the model's logits are {highest}: `recipe verify BUNDLE` names the tensor that overflows")
        if self.temperature == 0:
            return int(token)
        return self._draw(logits.float() - best)

    def _draw(self, logits: "Tensor") -> int:
        import torch

        if self._generator is None:
            self._generator = torch.Generator()
            self._generator.seed() if self.seed is None else self._generator.manual_seed(self.seed)
        # the best is 0 here, so that no temperature makes it overflow
        shares = torch.softmax(logits / max(self.temperature, torch.finfo(torch.float32).tiny), 0)
        if self.top_p < 1:
            ordered, order = shares.sort(descending=True, stable=True)
            ordered[ordered.cumsum(0) - ordered >= self.top_p] = 0
            ordered[0] = max(float(ordered[0]), torch.finfo(torch.float32).tiny)  # top_p 0: the best alone
            return int(order[torch.multinomial(ordered, 1, generator=self._generator)])
        return int(torch.multinomial(shares, 1, generator=self._generator))
