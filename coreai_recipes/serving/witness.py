"""How probable the tokens of an answer were."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coreai_recipes.generate.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from torch import Tensor

LEAST = -9999.0  # OpenAI's word for a probability of 0, which JSON has no logarithm of


@dataclass(frozen=True)
class Picked:
    """A token, its log-probability, and the most probable ones with theirs, before temperature and the like."""

    token_id: int
    logprob: float
    best: tuple[tuple[int, float], ...]


class Witness(Sampler):
    """A sampler that writes down what it picked; `top` is how many others, None for nothing at all."""

    def __init__(self, settings: Sampling, top: int | None) -> None:
        super().__init__(
            settings.temperature,
            settings.top_p,
            settings.seed,
            top_k=settings.top_k,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
        )
        self._top = top
        self.picked: list[Picked] = []

    def pick(self, logits: "Tensor", text: Sequence[int] = ()) -> int:
        token = super().pick(logits, text)
        if self._top is not None:
            shares = logits.float().log_softmax(0).clamp(min=LEAST)
            values, ids = shares.topk(min(self._top, len(shares)))
            best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
            self.picked.append(Picked(token, float(shares[token]), best))
        return token
