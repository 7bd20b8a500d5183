"""Which token comes next."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

from coreai_recipes.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; greedy without a temperature. transformers' words and formulas, in its order: repetition
    penalty, temperature, top_k, top_p, min_p.

    Attributes:
        top_k: of so many of the best; 0 of all.
        top_p: of the smallest set whose probabilities reach it.
        min_p: of those at least so probable as the best one times this.
        repetition_penalty: logits of tokens that the text holds, its prompt included, are divided by it where they are
            above 0, and multiplied below.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Raise UserError with every setting that is none."""
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature {self.temperature} must be 0 or more; 0 is greedy")
        if not 0 <= self.top_p <= 1:
            problems.append(f"top_p {self.top_p} is not in [0, 1]")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            problems.append(f"seed {str(self.seed)[:40]} is not in [0, 2**64); without it, every answer differs")
        if self.top_k < 0:
            problems.append(f"top_k {self.top_k} must be 0 or more; 0 means all tokens")
        if not 0 <= self.min_p <= 1:
            problems.append(f"min_p {self.min_p} is not in [0, 1]")
        if not 0 < self.repetition_penalty < float("inf"):
            problems.append(f"repetition_penalty {self.repetition_penalty} must be above 0; 1 changes nothing")
        UserError.collect(problems)

    @property
    def asked(self) -> list[str]:
        """The options for which the best token, as a package chose it, is not enough."""
        asked = {
            "--temperature": self.temperature != 0,
            "--top-k": self.top_k != 0,
            "--min-p": self.min_p != 0,
            "--repetition-penalty": self.repetition_penalty != 1,
        }
        return [option for option, is_asked in asked.items() if is_asked]


class Sampler:
    """Draws as a `Sampling` says. The same seed gives the same tokens; without one each sampler draws its own."""

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        *,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.settings = Sampling(temperature, top_p, seed, top_k, min_p, repetition_penalty)
        self._generator: Generator | None = None

    def pick(self, logits: "Tensor", text: Sequence[int] = ()) -> int:
        """The id of one token from its logits (V,), or as the package chose it, (1,), after the tokens `text`. Raises
        UserError when logits are NaN or all infinite."""
        if not logits.is_floating_point():
            return int(logits)
        logits = logits.float()
        if isnan(highest := logits.max().item()) or abs(highest) == float("inf"):
            raise UserError(f"the model's logits are {highest}: `recipe verify BUNDLE` names the tensor that overflows")
        if self.settings.repetition_penalty != 1 and text:
            logits = self._penalized(logits, text)
        best, token = logits.max(0)
        if self.settings.temperature == 0:
            return int(token)
        return self._draw(logits - best)

    def _penalized(self, logits: "Tensor", text: Sequence[int]) -> "Tensor":
        import torch

        seen = torch.tensor(sorted(set(text)))
        held, penalty = logits[seen], self.settings.repetition_penalty
        return logits.index_copy(0, seen, torch.where(held < 0, held * penalty, held / penalty))

    def _draw(self, logits: "Tensor") -> int:
        import torch

        settings, tiny = self.settings, torch.finfo(torch.float32).tiny
        if self._generator is None:
            self._generator = torch.Generator()
            self._generator.seed() if settings.seed is None else self._generator.manual_seed(settings.seed)
        # the best is 0 here, so that no temperature makes it overflow
        logits = logits / max(settings.temperature, tiny)
        if 0 < settings.top_k < len(logits):
            least = torch.topk(logits, settings.top_k).values[-1]
            logits = logits.masked_fill(logits < least, -float("inf"))
        shares = torch.softmax(logits, 0)
        if settings.top_p == 1 and settings.min_p == 0:
            return int(torch.multinomial(shares, 1, generator=self._generator))
        ordered, order = shares.sort(descending=True, stable=True)
        ordered[ordered.cumsum(0) - ordered >= settings.top_p] = 0
        ordered[ordered < settings.min_p * ordered[0]] = 0
        ordered[0] = max(float(ordered[0]), tiny)  # top_p 0: the best alone
        return int(order[torch.multinomial(ordered, 1, generator=self._generator)])
