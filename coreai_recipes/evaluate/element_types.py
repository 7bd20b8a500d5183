"""The element types of MIL: how each is stored, and which torch type carries its values here. A leaf."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from coreai_recipes.protobuf import MIL_pb2

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ElementType:
    """`stored` is the numpy type of one element in a file; types below a byte are unpacked to it.

    `carrier` is the torch type in which values travel through the program. Every float travels as float32: what
    float16 does to it is the business of `precision`. Unsigned types that torch cannot compute with travel in the
    next wider signed one.
    """

    name: str
    bits: int
    stored: type[np.generic]
    carrier: torch.dtype


ELEMENT_TYPES = {
    row.name: row
    for row in (
        ElementType("bool", 8, np.bool_, torch.bool),
        ElementType("float16", 16, np.float16, torch.float32),
        ElementType("float32", 32, np.float32, torch.float32),
        ElementType("float64", 64, np.float64, torch.float32),
        ElementType("int4", 4, np.int8, torch.int8),
        ElementType("int8", 8, np.int8, torch.int8),
        ElementType("int16", 16, np.int16, torch.int16),
        ElementType("int32", 32, np.int32, torch.int32),
        ElementType("int64", 64, np.int64, torch.int64),
        ElementType("uint1", 1, np.uint8, torch.uint8),
        ElementType("uint2", 2, np.uint8, torch.uint8),
        ElementType("uint3", 3, np.uint8, torch.uint8),
        ElementType("uint4", 4, np.uint8, torch.uint8),
        ElementType("uint6", 6, np.uint8, torch.uint8),
        ElementType("uint8", 8, np.uint8, torch.uint8),
        ElementType("uint16", 16, np.uint16, torch.int32),
        ElementType("uint32", 32, np.uint32, torch.int64),
        ElementType("string", 0, np.str_, torch.uint8),
    )
}

# `cast` and its kin name types in two ways.
CAST_NAMES = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}

_NAMES_BY_NUMBER = {number: name.lower() for name, number in MIL_pb2.DataType.items()}


def name_of_element_type(number: int) -> str:
    """The name, in lower case, of a `MIL.DataType` number."""
    return str(_NAMES_BY_NUMBER.get(number, f"type {number}"))


def unpack_bits(packed: Array, bits: int, count: int) -> Array:
    """`count` values of `bits` bits each, uint8; the first value lies in the lowest bits of the first byte."""
    if bits == 8:
        return packed[:count]
    if 8 % bits == 0:
        per_byte = 8 // bits
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        values = (packed[:, None] >> shifts) & np.uint8((1 << bits) - 1)  # (bytes, per_byte)
        return np.ascontiguousarray(values.reshape(packed.size * per_byte)[:count])
    single = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
    return np.asarray((single << np.arange(bits, dtype=np.uint8)).sum(1), dtype=np.uint8)


def decode_elements(raw: Array, element_type: ElementType, count: int) -> Array:
    """`count` elements from the bytes `raw` (uint8), in the stored type, flat."""
    if element_type.bits < 8:
        values = unpack_bits(raw, element_type.bits, count)
        if element_type.name == "int4":
            return ((values.astype(np.int8) ^ 8) - 8).astype(np.int8)
        return values
    return raw.view(element_type.stored)[:count]


class TensorType(NamedTuple):
    """Element type and shape; a size that only the run decides is -1."""

    element_type: str
    shape: tuple[int, ...]
