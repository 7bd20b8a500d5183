"""The constants of a program: immediate values, blobs in weight.bin, and what `constexpr_` operations make of them."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from coreai_recipes.evaluate.blob import BlobFile
from coreai_recipes.evaluate.decompress import DECOMPRESSIONS, look_up, shift_and_scale
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, Array

# Blobs larger than this are streamed when the program streams its weights, and read row by row by a gather.
LARGE_BYTES = 64 << 10
BLOCK = 64  # columns that precision `strict` adds up at a time
# How a constant stays in memory: as it travels through the program, as it is stored, or as stored, of a matrix one
# block of columns after the other, flat.
Kept = Literal["carried", "stored", "blocks"]


class Constant(Protocol):
    """A value that is known before the program runs."""

    @property
    def element_type(self) -> str:
        """The name of its type in the program."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the program."""

    @property
    def is_large(self) -> bool:
        """Whether it comes from more than 64 KB of weight.bin."""

    @property
    def key(self) -> Hashable:
        """Equal for constants that hold the same values in the same order, whatever their shapes."""

    def stored(self) -> Tensor:
        """The values in the type in which they are stored, in `shape`."""

    def carried(self) -> Tensor:
        """The values in the type in which they travel through the program, flat."""

    def rows(self, indices: list[int]) -> Tensor | None:
        """Some rows of the first axis as stored, or None where they cannot be had without all of it."""


def tensor_of(values: Array) -> Tensor:
    """A torch tensor of the same values; unsigned types that torch does not compute with become wider."""
    if values.dtype in (np.uint16, np.uint32):
        values = values.astype(np.int32 if values.dtype == np.uint16 else np.int64)
    return torch.from_numpy(np.ascontiguousarray(values))


@dataclass(frozen=True, eq=False)
class ImmediateConstant:
    """A value that the program's own file holds; `texts` when it is a string or a list of them."""

    element_type: str
    shape: tuple[int, ...]
    values: Array
    texts: tuple[str, ...] = ()

    @property
    def is_large(self) -> bool:
        return False

    @property
    def key(self) -> Hashable:
        return "immediate", self.element_type, self.values.tobytes(), self.texts

    def stored(self) -> Tensor:
        return tensor_of(self.values).reshape(self.shape)

    def carried(self) -> Tensor:
        return tensor_of(self.values).to(ELEMENT_TYPES[self.element_type].carrier)

    def rows(self, indices: list[int]) -> Tensor | None:
        return self.stored()[indices]


@dataclass(frozen=True, eq=False)
class BlobConstant:
    """A value in weight.bin."""

    element_type: str
    shape: tuple[int, ...]
    blob: BlobFile
    offset: int

    @property
    def is_large(self) -> bool:
        return math.prod(self.shape) * ELEMENT_TYPES[self.element_type].bits > LARGE_BYTES * 8

    @property
    def key(self) -> Hashable:
        return str(self.blob.path), self.offset, self.element_type

    def check(self) -> None:
        """Raise when weight.bin does not hold it, before anything is computed."""
        self.blob.locate(self.offset, self.element_type, math.prod(self.shape))

    def stored(self) -> Tensor:
        return tensor_of(self.blob.read(self.offset, self.element_type, math.prod(self.shape))).reshape(self.shape)

    def carried(self) -> Tensor:
        if ELEMENT_TYPES[self.element_type].carrier == torch.float32:
            return self.blob.read_float32(self.offset, self.element_type, math.prod(self.shape))
        return self.stored().reshape(-1).to(ELEMENT_TYPES[self.element_type].carrier)

    def rows(self, indices: list[int]) -> Tensor | None:
        if math.prod(self.shape[1:]) * ELEMENT_TYPES[self.element_type].bits % 8:
            return None
        return tensor_of(self.blob.read_rows(self.offset, self.element_type, self.shape, indices))


@dataclass(frozen=True, eq=False)
class DecompressedConstant:
    """One result of a `constexpr_` operation; it is computed when asked for and not kept here."""

    element_type: str
    shape: tuple[int, ...]
    operation: str
    parameters: dict[str, Constant]
    result: int

    @property
    def is_large(self) -> bool:
        return any(parameter.is_large for parameter in self.parameters.values())

    @property
    def key(self) -> Hashable:
        # A tied table is (V, C) to the embedding and (V, C, 1, 1) to the head; its scales follow. Trailing ones of the
        # data are taken off every shape of that rank, and off the groups of a lookup table.
        ones = len(self.shape) - len(_without_trailing_ones(self.shape))

        def shape_of(parameter: Constant) -> tuple[int, ...]:
            shape = parameter.shape
            if ones and len(shape) == len(self.shape):
                return shape[:-ones]
            if ones and len(shape) == len(self.shape) + 2:
                return shape[: -ones - 2] + shape[-2:]
            return shape

        parts = {name: part for name, part in self.parameters.items() if name != "shape"}
        described = tuple((name, shape_of(parts[name]), parts[name].key) for name in sorted(parts))
        return self.operation, self.result, self.element_type, _without_trailing_ones(self.shape), described

    def stored(self) -> Tensor:
        values = {name: parameter.stored() for name, parameter in self.parameters.items() if not _is_text(parameter)}
        return DECOMPRESSIONS[self.operation](values)[self.result].reshape(self.shape)

    def carried(self) -> Tensor:
        return self.stored().reshape(-1).to(ELEMENT_TYPES[self.element_type].carrier)

    def rows(self, indices: list[int]) -> Tensor | None:
        """Rows of a quantised or palettised table are made of the same rows of its parts."""
        if self.operation == "constexpr_blockwise_shift_scale":
            parts = self._parts_of_rows(indices, self.parameters, "data")
            return None if parts is None else shift_and_scale(parts["data"], parts["scale"], parts.get("offset"))
        if self.operation == "constexpr_lut_to_dense" and len(self.parameters["lut"].shape) > 1:
            axis_constant = self.parameters.get("vector_axis")
            axis = int(axis_constant.stored()) % len(self.shape) if axis_constant else None
            if axis == 0:
                return None
            tables = {name: self.parameters[name] for name in ("indices", "lut")}
            parts = self._parts_of_rows(indices, tables, "indices")
            return None if parts is None else look_up(parts["indices"], parts["lut"], axis)
        return None

    def _parts_of_rows(
        self, indices: list[int], parameters: dict[str, Constant], main: str
    ) -> dict[str, Tensor] | None:
        parts: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            block = parameters[main].shape[0] // parameter.shape[0]
            found = parameter.rows([index // block for index in indices])
            if found is None:
                return None
            parts[name] = found
        return parts


def _without_trailing_ones(shape: Sequence[int]) -> tuple[int, ...]:
    kept = list(shape)
    while kept and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _is_text(constant: Constant) -> bool:
    return constant.element_type == "string"


class ConstantStore:
    """Tensors of constants that stay in memory, one copy for all functions, all precisions and all shapes."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Tensor] = {}

    def tensor(self, constant: Constant, shape: tuple[int, ...], kept: Kept = "carried") -> Tensor:
        """The values as `kept` says, viewed in `shape`; the same storage each time."""
        key = constant.key if kept == "carried" else (constant.key, kept)
        values = self._kept.get(key)
        if values is None:
            values = self._kept[key] = _values(constant, shape, kept)
        return values.view(shape) if kept != "blocks" else values


def _values(constant: Constant, shape: tuple[int, ...], kept: Kept) -> Tensor:
    if kept == "carried":
        return constant.carried()
    matrix = constant.stored().reshape(shape)
    return matrix if kept == "stored" else torch.cat([part.flatten() for part in torch.split(matrix, BLOCK, 1)])
