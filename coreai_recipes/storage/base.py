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
BITS = {"float16": 16, "int8": 8}


@dataclass(frozen=True)
class Part:
    """A blob of a parameter: `operand` is its name in the operation that makes the weight of its parts."""

    operand: str
    dtype: str
    shape: Shape

    @property
    def bytes(self) -> int:
        return -(-prod(self.shape) * BITS[self.dtype] // 8)


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

        Gives values and the number of the part that they belong to, part after part; values last until the next are
        asked for. Raises CheckpointError, with the name of `tensor`, for what float16 cannot hold.
        """

    @abstractmethod
    def decode(self, parts: list[NDArray[Any]], shape: Shape) -> Tensor:
        """The numbers, float32, as the program has them: rounded to float16."""

    @abstractmethod
    def __str__(self) -> str:
        """Its name for a reader."""

    def as_stored(self, rows: Tensor, tensor: str) -> Tensor:
        """Whole rows of a parameter as a package gives them back, float32."""
        shape = tuple(rows.shape)
        found: list[list[NDArray[Any]]] = [[] for _ in self.parts(shape)]
        for part, values in self.encode([rows], shape, tensor):
            found[part].append(values.reshape(-1).copy())
        import numpy as np

        return self.decode([np.concatenate(values) for values in found], shape)

    def bytes(self, shape: Shape) -> int:
        """What a parameter of this shape takes, without the alignment of its blobs."""
        return sum(part.bytes for part in self.parts(shape))
