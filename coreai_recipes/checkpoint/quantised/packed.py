"""A tensor that is stored in parts. A leaf of its folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coreai_recipes.checkpoint.base import Grid, TensorInfo
from coreai_recipes.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Read = Callable[[str, range], "Tensor"]  # rows of a tensor as it is stored
Stored = Mapping[str, TensorInfo]

WORD_BITS = 32
PIECE_ELEMENTS = 1 << 18


class Packed(ABC):
    """A tensor that is stored in parts.

    Attributes:
        info: the tensor as it is presented; its dtype is the word for its form.
        parts: the names of what is stored.
        packer: whose form it is.
    """

    info: TensorInfo
    parts: tuple[str, ...]
    packer: ClassVar[str]

    def grid(self, read: Read) -> Grid | None:
        """As `Checkpoint.grid`."""
        return None

    @abstractmethod
    def blocks(self, read: Read, rows: range) -> Iterator[Tensor]:
        """Consecutive blocks of `rows` in a float dtype that holds them exactly (FP8: as exactly as float32 does)."""


@dataclass(frozen=True)
class PackedMatrix(Packed):
    """A matrix (rows, columns) whose rows are made of some rows of each part."""

    info: TensorInfo
    parts: tuple[str, ...]

    def blocks(self, read: Read, rows: range) -> Iterator[Tensor]:
        make = self.prepare(read)
        step = max(1, PIECE_ELEMENTS // self.info.shape[1])
        for start in range(rows.start, rows.stop, step):
            yield make(range(start, min(start + step, rows.stop)))

    @abstractmethod
    def prepare(self, read: Read) -> Callable[[range], Tensor]:
        """What makes some rows, float32; parts that all rows need are read before."""

    def group_of(self, read: Read, stored: Stored, name: str | None, groups: int) -> Tensor:
        """The group of each column: as a part says, or runs of equal length."""
        import torch

        columns = self.info.shape[1]
        if name is None:
            return torch.arange(columns) // (columns // groups)
        found = self.whole(read, stored, name).long()
        if int(found.min()) < 0 or int(found.max()) >= groups:
            raise CheckpointError(f"{name} names a group beyond the {groups} that there are")
        return found

    def is_in_runs(self, read: Read, stored: Stored, name: str | None, groups: int) -> bool:
        """Whether the groups are runs of equal length."""
        import torch

        if self.info.shape[1] % groups:
            return False
        return torch.equal(self.group_of(read, stored, name, groups), self.group_of(read, stored, None, groups))

    def whole(self, read: Read, stored: Stored, name: str) -> Tensor:
        return read(name, range(stored[name].shape[0] if stored[name].shape else 1))


def are_float16(scales: Tensor) -> bool:
    """Whether float16 holds every scale, none of them below zero."""
    import torch

    exact = scales.float()
    return bool((exact >= 0).all()) and torch.equal(exact.half().float(), exact) and bool(exact.isfinite().all())


def numbers_in(words: Tensor, bits: int) -> Tensor:
    """Words (..., n) of 32 bits as the numbers (..., n 32 / bits) in them, the first in the lowest bits."""
    import torch

    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    return ((words.int().unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def said_in(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping of config.json, empty where there is none."""
    said = config.get(key)
    return said if isinstance(said, Mapping) else {}
