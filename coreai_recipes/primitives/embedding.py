"""From token ids to the first hidden state."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.primitives.constants import scaled
from coreai_recipes.primitives.registry import register


@register("embedding", "table")
class Embedding(nn.Module):
    """input_ids (1, S) -> (1, C, 1, S); weight (V, C), each row times `scale`."""

    def __init__(self, vocab_size: int, hidden_size: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size), requires_grad=False)
        self.scale = scale

    def forward(self, input_ids: Tensor) -> Tensor:
        return scaled(F.embedding(input_ids, self.weight).transpose(1, 2).unsqueeze(2), self.scale)
