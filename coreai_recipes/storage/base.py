"""How a parameter lies in a package: its blobs, and how its numbers get there and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
RECORD_BYTES = 64  # before each blob of weight.bin, and before all of them
ALIGNMENT = 64  # of records
BITS = {"float16": 16, "int8": 8, "int4": 4, **{f"uint{bits}": bits for bits in (1, 2, 3, 4, 6, 8)}}


@dataclass(frozen=True)
class Part:
    """A blob of a parameter: `operand` is its name in the operation that makes the weight of its parts."""

    operand: str
    dtype: str
    shape: Shape

    @property
    def bytes(self) -> int:
        return -(-prod(self.shape) * BITS[self.dtype] // 8)

    @property
    def padding_bits(self) -> int:
        """Those of the last byte that are not used."""
        return 8 * self.bytes - prod(self.shape) * BITS[self.dtype]


class Storage(ABC):
    """A way of storing parameters. Everything but the numbers follows from a parameter's shape.

    `operation` is the one of ML Program that makes the weight, None where the only blob is the weight itself.
    """

    kind: ClassVar[str]
    operation: ClassVar[str | None] = None

    @abstractmethod
    def parts(self, shape: Shape) -> tuple[Part, ...]:
        """The blobs of a parameter of this shape, in the order in which they are written."""

    @abstractmethod
    def encode(self, blocks: Iterable[Tensor], shape: Shape, tensor: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """The blobs of a parameter whose numbers come in `blocks` of whole rows, and zeros behind them up to `shape`.

        Gives values and the number of the part that they belong to, part after part. Values last until the next but
        one are asked for: they may be hashed while the next are made.
        Raises CheckpointError, with the name of `tensor`, for what float16 cannot hold.
        """

    @abstractmethod
    def decode(self, parts: list[NDArray[Any]], shape: Shape) -> Tensor:
        """The numbers, float32, as the program has them: rounded to float16."""

    @abstractmethod
    def __str__(self) -> str:
        """Its name for a reader."""

    @property
    def is_coarse(self) -> bool:
        """Whether so much is lost that it makes a difference which errors a text says matter."""
        return False

    def fitted(self, shape: Shape) -> Storage:
        """What becomes of it for a parameter of this shape."""
        return self

    def misfit(self, shape: Shape) -> str | None:
        """Why it becomes something else for a parameter of this shape, None where it does not."""
        return None

    def together(self, shape: Shape) -> int:
        """How many rows of the first axis are stored together, and must be given back together."""
        return 1

    def as_stored(self, rows: Tensor, tensor: str) -> Tensor:
        """Rows of a parameter that are stored together as a package gives them back, float32."""
        shape = tuple(rows.shape)
        found: list[list[NDArray[Any]]] = [[] for _ in self.parts(shape)]
        for part, values in self.encode([rows], shape, tensor):
            found[part].append(values.reshape(-1).copy())
        import numpy as np

        return self.decode([np.concatenate(values) for values in found], shape)

    def bytes(self, shape: Shape) -> int:
        """What a parameter of this shape takes, without the alignment of its blobs."""
        return sum(part.bytes for part in self.parts(shape))


def align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def axis_of_row(shape: Shape) -> int:
    """The axis along which a row's weights lie: the last but those of a convolution's 1 x 1."""
    return max((axis for axis, size in enumerate(shape) if size > 1), default=len(shape) - 1)


def join_rows(blocks: Iterable[NDArray[Any]], step: int, rows: int) -> Iterator[NDArray[Any]]:
    """`blocks` of any number of rows, each valid until the next, as blocks of `step` rows; the last may have fewer.

    There are `rows` in all: zeros where there are not so many.
    """
    import numpy as np

    held: NDArray[Any] | None = None
    filled = 0
    for block in blocks:
        start = 0
        while start < len(block):
            if held is None:
                held = np.zeros((min(step, rows), *block.shape[1:]), block.dtype)
            count = min(len(held) - filled, len(block) - start)
            held[filled : filled + count] = block[start : start + count]
            start, filled = start + count, filled + count
            if filled == len(held):
                yield held
                rows, filled, held = rows - filled, 0, None
    while rows > 0:
        held = np.zeros((min(step, rows), *block.shape[1:]), block.dtype) if held is None else held
        yield held
        rows, held = rows - len(held), None
