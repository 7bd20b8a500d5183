"""How the logits of a package lie, and how they are read. A leaf.

The vocabulary is no axis of its own: the engine of M1 to M3 takes none above 16,384 among the last two. It is `pieces`
of `columns`, one behind the other, token t being column t % columns of piece t // columns; what is behind the last
token is padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_COLUMNS = 16_384
ALIGNMENT = 32  # float16 values in the engine's 64 bytes


@dataclass(frozen=True)
class Pieces:
    """The least number of pieces that are short enough, in whole lanes of the engine."""

    vocab_size: int

    @property
    def count(self) -> int:
        return -(-self.vocab_size // MAX_COLUMNS)

    @property
    def columns(self) -> int:
        return -(-self.vocab_size // (self.count * ALIGNMENT)) * ALIGNMENT

    @property
    def rows(self) -> int:
        """Of the head's matrix, those of zeros behind the last token's included."""
        return self.count * self.columns

    def shape(self, tokens: int) -> tuple[int, ...]:
        """Of the logits of so many tokens: (1, n, m) of one, (1, S, n, m) of several."""
        return (1, *((tokens,) if tokens > 1 else ()), self.count, self.columns)


def choices(outputs: Mapping[str, "Tensor"], vocab_size: int) -> "Tensor":
    """What a call says of the token that follows each of its own, a row each: logits (S, V), or ids (S, 1).

    `logits` are (1, n, m) of one token or (1, S, n, m) of several, or (1, S, V) as torch has them; `ids` (1, S).
    """
    if "ids" in outputs:
        return outputs["ids"].reshape(-1, 1)
    logits = outputs["logits"]
    width = vocab_size if logits.shape[-1] == vocab_size else Pieces(vocab_size).rows
    return logits.reshape(-1, width)[:, :vocab_size]


def best(choice: "Tensor") -> int:
    """The token of a row of `choices`: the id that is given, or that of the highest logit."""
    return int(choice.argmax()) if choice.is_floating_point() else int(choice)
