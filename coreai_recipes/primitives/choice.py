"""The best token of logits in pieces, within a program: for a host that wants no logits.

Without an argmax, which may leave the engine beyond 2,048 values and says nothing of equal ones. Places are found as
the least of those whose value is the highest, in whole numbers that float16 holds: up to 2,048.
"""

import torch
from torch import Tensor

LONGEST = 2048  # float16 holds every whole number up to it
PADDED = -6e4  # lower than any logit, and finite


def choose(logits: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """ids (1, S) int32 and their logits (1, S), of logits (1, n, m) or (1, S, n, m); the lowest of equal ones.

    No id is that of padding. One of vocab_size or more says that the logits are NaN.
    """
    rows, columns = strips(*map(int, logits.shape[-2:]))
    row, column = torch.arange(rows).view(1, -1, 1).float(), torch.arange(columns).view(1, 1, -1).float()
    x = without_padding(logits.view(-1, rows, columns), row, column, vocab_size)
    best = x.amax((1, 2), keepdim=True)  # (S, 1, 1)
    # By products: a selection would store both of its sides in the shape of the logits. `ahead` of a strip's end lies
    # its first best value, 0 where it has none: then it is at `columns`, and where no strip has one, in strip `rows`.
    # Whole numbers are compared by differences, for what gives booleans may leave the engine.
    ahead = ((x == best).float() * (column - columns)).amin(2, keepdim=True)  # (S, R, 1)
    strip = rows + ((-ahead).clamp(max=1) * (row - rows)).amin(1, keepdim=True)  # (S, 1, 1)
    within = columns + ((1 - (row - strip).abs()).clamp(min=0) * ahead).amin(1, keepdim=True)
    ids = strip.int() * columns + within.int()
    return ids.view(1, -1), best.view(1, -1)


def strips(pieces: int, columns: int) -> tuple[int, int]:
    """How many strips of how many columns pieces make, none longer than LONGEST."""
    cuts = next(n for n in range(1, columns + 1) if columns % n == 0 and columns // n <= LONGEST)
    return pieces * cuts, columns // cuts


def without_padding(x: Tensor, row: Tensor, column: Tensor, vocab_size: int) -> Tensor:
    """x (S, R, W) with PADDED behind the last token, by vectors: a table of the whole vocabulary would be stored."""
    rows, columns = int(row.numel()), int(column.numel())
    whole, rest = divmod(vocab_size, columns)
    if rest:
        of_column = torch.where(column < rest, -PADDED, PADDED)
        of_row = torch.where(row == whole, PADDED, -PADDED)
        x = torch.maximum(torch.minimum(x, of_column), torch.minimum(x, of_row))
    if whole + bool(rest) < rows:
        x = torch.minimum(x, torch.where(row < whole + bool(rest), -PADDED, PADDED))
    return x
