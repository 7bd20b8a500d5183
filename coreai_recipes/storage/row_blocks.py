"""Rows of a stored parameter that a program takes by themselves: each product of a head takes some of its matrix.

They lie in the parameter's own blobs, and only have records of their own: a table that is the embedding and the head is
in weight.bin once, whole for the one and in blocks for the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.storage.base import ALIGNMENT, BITS, Shape, Storage

BYTE = 8
# Rows of a head in a product of their own. Of one token its result is padded to 64 bytes a row: 2 MB, which the engines
# of M1 and A14 keep near (rule `wset`). No engine takes more than 65,536 (rule `chan-64k`).
NEAR, MOST = 32_768, 65_536


@dataclass(frozen=True)
class RowBlock:
    """Rows `first` to before `end` of the first axis of `parameter`."""

    parameter: str
    first: int
    end: int

    @property
    def name(self) -> str:
        """What a program calls them."""
        return f"{self.parameter}[{self.first}:{self.end}]"

    def shape(self, whole: Shape) -> Shape:
        return (self.end - self.first, *whole[1:])


def pieces_together(vocab_size: int, stored: Iterator[tuple[Shape, Storage]]) -> tuple[int, ...]:
    """How many pieces of the logits each product of a head makes, where its parameters have these shapes and storages.

    All of them in one where blocks would not begin where a blob may: at 64 bytes, in whole groups of a palette.
    """
    pieces, found = Pieces(vocab_size), list(stored)
    for limit in (NEAR, MOST):
        each = min(limit // pieces.columns, pieces.count)
        if all(_begins_as_a_blob(storage, shape, each * pieces.columns) for shape, storage in found):
            whole, rest = divmod(pieces.count, each)
            return (each,) * whole + ((rest,) if rest else ())
    return (pieces.count,)


def _begins_as_a_blob(storage: Storage, shape: Shape, rows: int) -> bool:
    """Whether rows of a multiple of `rows` have whole bytes, at multiples of 64, in every part."""
    if rows >= shape[0]:
        return True
    if rows % storage.together(shape):
        return False
    bits = (BITS[part.dtype] * prod(part.shape) * rows / shape[0] for part in storage.parts(shape))
    return all(each % (ALIGNMENT * BYTE) == 0 for each in bits)
