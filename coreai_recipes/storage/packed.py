"""A parameter's blobs in a weight.bin that was written: some of its rows, given back."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm, prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.aimodel.folder import blob_name
from coreai_recipes.errors import BundleError
from coreai_recipes.storage.base import BITS, Shape
from coreai_recipes.storage.float16 import Float16
from coreai_recipes.storage.layout import DATA_TYPES, RECORD, SENTINEL, Blob, Placed

BYTE = 8
NUMPY = {"float16": np.float16, "int8": np.int8}  # others are packed bytes


@dataclass(frozen=True)
class PackedParts:
    """Of the parameter that is `placed` in the file `path`."""

    path: Path
    placed: Placed

    @property
    def shape(self) -> Shape:
        """The parameter's, a norm's (1, C, 1, 1) without the axis before its numbers."""
        first, *rest = self.placed.shape
        is_vector = isinstance(self.placed.storage, Float16) and first == 1 and prod(rest) > 1
        return tuple(rest) if is_vector else self.placed.shape

    def step(self, heads: int = 1) -> int:
        """Rows of the first axis come in multiples of as many: whole heads, whole groups and whole bytes."""
        rows = self.shape[0]
        found = lcm(self.placed.storage.together(self.shape), heads)
        if any(BITS[b.part.dtype] * prod(b.part.shape) * found % (rows * BYTE) for b in self.placed.blobs):
            found = lcm(found, BYTE)
        return found

    def rows(self, first: int, end: int) -> Tensor:
        """Rows first..end of the first axis, float32, (rows, ...)."""
        step, shape = self.step(), self.shape
        start, stop = first // step * step, min(-(-end // step) * step, shape[0])
        parts = [self._read(blob, start, stop) for blob in self.placed.blobs]
        found = self.placed.storage.decode(parts, (stop - start, *shape[1:]))
        return found[first - start : end - start]

    def _read(self, blob: Blob, start: int, stop: int) -> NDArray[np.generic]:
        part, rows = blob.part, self.shape[0]
        bits = BITS[part.dtype] * prod(part.shape)
        begin, size = bits * start // rows // BYTE, -(-bits * (stop - start) // rows // BYTE)
        try:
            with self.path.open("rb") as file:
                place = self._place(file, blob)
                file.seek(place + begin)
                data = file.read(size)
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
        if len(data) != size:
            raise self._missing(blob)
        return np.frombuffer(data, NUMPY.get(part.dtype, np.uint8))

    def _place(self, file: BinaryIO, blob: Blob) -> int:
        """Where a blob's data begin."""
        file.seek(blob.offset)
        sentinel, kind, length, place, _ = RECORD.unpack(file.read(RECORD.size).ljust(RECORD.size, b"\0"))
        if (sentinel, kind, length) != (SENTINEL, DATA_TYPES[blob.part.dtype], blob.part.bytes):
            raise self._missing(blob)
        return int(place)

    def _missing(self, blob: Blob) -> BundleError:
        return BundleError(f"{self.path}: the recipe's weight of {blob.part.bytes} bytes is not at byte {blob.offset}")


@dataclass(frozen=True)
class AssetParts(PackedParts):
    """As `PackedParts`, in the program of an .aimodel, whose blobs are at these `places` by their names."""

    name: str
    places: Mapping[str, tuple[int, int]]

    def _place(self, file: BinaryIO, blob: Blob) -> int:
        place, size = self.places.get(blob_name(self.name, blob.part.operand), (0, 0))
        if size != blob.part.bytes:
            raise BundleError(f"{self.path}: the recipe's weight {self.name} of {blob.part.bytes} bytes is not in it")
        return place
