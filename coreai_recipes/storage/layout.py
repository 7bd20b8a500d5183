"""Where parameters lie in weight.bin: known from their shapes and storages alone, before a weight is read.

The format (MILBlob's StorageFormat.hpp, in coremltools): a header of 64 bytes with the number of blobs and version 2;
then for each blob a record of 64 bytes (sentinel, data type, size, offset of the data, bits of padding), and the data,
both aligned to 64.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from coreai_recipes.storage.base import Part, Shape, Storage, align
from coreai_recipes.storage.compression import FLOAT16, Parameters
from coreai_recipes.storage.row_blocks import RowBlock

FILE = Path("Data/com.apple.CoreML/weights/weight.bin")  # in a package
SENTINEL = 0xDEADBEEF
VERSION = 2
DATA_TYPES = {
    "float16": 1,
    "uint8": 3,
    "int8": 4,
    "int4": 8,
    "uint1": 9,
    "uint2": 10,
    "uint4": 11,
    "uint3": 12,
    "uint6": 13,
}
HEADER = struct.Struct("<II56x")
RECORD = struct.Struct("<IIQQQ32x")


@dataclass(frozen=True)
class Blob:
    """A part's place in weight.bin: `offset` is that of its record, which is what a program refers to.

    `inside` is where its data begin, if they are in another blob and not behind the record.
    """

    part: Part
    offset: int
    inside: int | None = None

    @property
    def start(self) -> int:
        """Of its data."""
        return self.offset + RECORD.size if self.inside is None else self.inside

    @property
    def end(self) -> int:
        return self.offset + RECORD.size + (self.part.bytes if self.inside is None else 0)


@dataclass(frozen=True)
class Placed:
    """A parameter's blobs in weight.bin, one for each part of its storage."""

    shape: Shape
    storage: Storage
    blobs: tuple[Blob, ...]

    @property
    def bytes(self) -> int:
        return sum(blob.part.bytes for blob in self.blobs)


class WeightLayout:
    """The order and offsets of the blobs, settled as the program asks for them.

    `blocks` are rows of parameters that have records of their own, by the blocks' names, behind everything else: who
    goes from record to record over their data, as many as the header says, does not meet these.
    """

    def __init__(self) -> None:
        self.placed: dict[str, Placed] = {}
        self.blocks: dict[str, Placed] = {}
        self.end = HEADER.size

    def __repr__(self) -> str:
        """All that a program can say of its weights."""
        return "\n".join(
            f"{name} {p.shape} {p.storage} {p.blobs}" for name, p in (*self.placed.items(), *self.blocks.items())
        )

    @property
    def bytes(self) -> int:
        """Of all parameters, without headers and gaps."""
        return sum(placed.bytes for placed in self.placed.values())

    def place(self, name: str, shape: Shape, storage: Storage = FLOAT16) -> Placed:
        """Where tensor `name` lies; the same tensor in another shape (a tied table) is the same blobs, and stays in the
        storage that it was given first."""
        placed = self.blocks.get(name) or self.placed.get(name)
        if placed is None:
            blobs = []
            for part in storage.parts(shape):
                blobs.append(Blob(part, align(self.end)))
                self.end = blobs[-1].end
            placed = self.placed[name] = Placed(shape, storage, tuple(blobs))
        elif prod(placed.shape) != prod(shape):
            raise RuntimeError(f"{name} is used as {placed.shape} and as {shape}")
        return placed

    @classmethod
    def of(cls, parameters: Parameters) -> "WeightLayout":
        """Of the parameters of a package, in their order."""
        layout = cls()
        for name, shape in parameters.shapes.items():
            layout.place(name, shape, parameters.compression.storage(name, shape))
        for block in parameters.blocks:
            layout.place_block(block)
        return layout

    def place_block(self, block: RowBlock) -> None:
        """Give rows of a parameter that has its place records of their own."""
        whole, blobs = self.placed[block.parameter], []
        for of_whole, part in zip(whole.blobs, whole.storage.parts(block.shape(whole.shape)), strict=True):
            begin = of_whole.part.bytes * block.first // whole.shape[0]
            blobs.append(Blob(part, align(self.end), of_whole.start + begin))
            self.end = blobs[-1].end
        self.blocks[block.name] = Placed(block.shape(whole.shape), whole.storage, tuple(blobs))
