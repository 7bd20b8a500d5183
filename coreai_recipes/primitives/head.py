"""From the last hidden state to logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.registry import register


@register("head", "linear")
class Head(nn.Module):
    """x (1, C, 1, S) -> logits (1, S, V). A tied head owns no weight and is given the embedding's, (V, C, 1, 1)."""

    def __init__(self, vocab_size: int, hidden_size: int, tied: bool, softcap: float | None) -> None:
        super().__init__()
        shape = (vocab_size, hidden_size, 1, 1)
        self.weight = None if tied else nn.Parameter(torch.empty(shape), requires_grad=False)
        self.softcap = softcap

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        weight = self.weight if table is None else table
        if weight is None:
            raise ValueError("a tied head needs the embedding's table")
        logits = F.conv2d(x, weight).squeeze(2).transpose(1, 2)  # (1, S, V)
        if self.softcap is not None:
            logits = scaled(torch.tanh(scaled(logits, 1 / self.softcap)), self.softcap)
        return logits
