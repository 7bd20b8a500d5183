"""compressed-tensors, which llm-compressor writes: integers of a matrix in words or bytes, and their scales.

    pack-quantized   NAME_packed (O, I b / 32), a word b-bit numbers from 2^(b - 1) below zero on; NAME_scale (O, G);
                     NAME_zero_point (O b / 32, G), packed by outputs; NAME_g_idx (I)        ->  NAME (O, I)
    int-quantized    NAME (O, I) in int8, NAME_scale (O, G), NAME_zero_point (O, G)

Its pack_to_int32 and dequantize: (number - offset) * scale. FP8 is read as others write it, by `packing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coreai_recipes.checkpoint.base import Grid, TensorInfo
from coreai_recipes.checkpoint.quantised.packed import (
    WORD_BITS,
    Packed,
    PackedMatrix,
    Read,
    Stored,
    are_float16,
    numbers_in,
    said_in,
)

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT, PACKED = ".weight", "_packed"
WIDTHS = (2, 4, 8)


@dataclass(frozen=True)
class IntegerMatrix(PackedMatrix):
    """`bits` of numbers in words, None for int8 as it is; `offsets` and `groups` are parts that may not be there."""

    stored: Stored
    bits: int | None
    offsets: str | None
    groups: str | None

    packer: ClassVar[str] = "compressed-tensors"

    def grid(self, read: Read) -> Grid | None:
        scales = self.whole(read, self.stored, self.parts[1]).view(self.info.shape[0], -1)
        count, bits = scales.shape[1], max(4, self.bits or 8)
        if not are_float16(scales) or not self.is_in_runs(read, self.stored, self.groups, count):
            return None
        if self.offsets is not None:
            offsets, half = self._offsets(read, self.offsets), 1 << bits - 1
            if int(offsets.min()) < -half or int(offsets.max()) >= half:
                return None
        return Grid(bits, self.info.shape[1] // count, self.offsets is None)

    def prepare(self, read: Read) -> Callable[[range], Tensor]:
        import torch

        name, scale_name = self.parts[:2]
        scales = self.whole(read, self.stored, scale_name).float().view(self.info.shape[0], -1)
        offsets = torch.zeros(1, 1) if self.offsets is None else self._offsets(read, self.offsets).float()
        group = self.group_of(read, self.stored, self.groups, scales.shape[1])

        def make(rows: range) -> Tensor:
            numbers = read(name, rows)
            if self.bits is not None:
                numbers = numbers_in(numbers, self.bits) - (1 << self.bits - 1)
            of_rows = slice(rows.start, rows.stop)
            offset = offsets[of_rows][:, group] if self.offsets is not None else offsets
            return (numbers.float() - offset) * scales[of_rows][:, group]

        return make

    def _offsets(self, read: Read, name: str) -> Tensor:
        found = self.whole(read, self.stored, name)
        if self.bits is None or found.dtype.itemsize == 1:
            return found
        return numbers_in(found.t().contiguous(), self.bits).t()[: self.info.shape[0]] - (1 << self.bits - 1)


def find_compressed(name: str, stored: Stored, config: Mapping[str, Any]) -> Packed | None:
    """The matrix whose numbers `name` holds, None where it holds none or its parts do not fit."""
    is_packed = name.endswith(WEIGHT + PACKED)
    whole = name.removesuffix(PACKED)
    info, scale = stored[name], stored.get(f"{whole}_scale")
    if scale is None or len(info.shape) != 2 or not (is_packed or (name.endswith(WEIGHT) and info.dtype == "I8")):
        return None
    bits = _bits(config) if is_packed else None
    if is_packed and (bits is None or info.dtype != "I32"):
        return None
    outputs, inputs = info.shape[0], info.shape[1] * WORD_BITS // bits if bits else info.shape[1]
    groups, offset = stored.get(f"{whole}_g_idx"), stored.get(f"{whole}_zero_point")
    columns = scale.shape[1] if len(scale.shape) == 2 else 1
    fits = scale.shape in ((outputs, columns), (outputs,)) and columns > 0
    fits &= groups.shape == (inputs,) if groups is not None else inputs % max(columns, 1) == 0
    if offset is not None:
        packed_rows = -(-outputs * bits // WORD_BITS) if bits else outputs
        fits &= offset.shape == ((outputs if offset.dtype == "I8" else packed_rows), columns)
    if not fits:
        return None
    parts = (name, scale.name, *(part.name for part in (offset, groups) if part is not None))
    form = TensorInfo(whole, (outputs, inputs), f"compressed-tensors of {bits or 8} bits", info.file)
    extra = tuple(other for end in ("_shape",) if (other := whole + end) in stored)
    offset_name, groups_name = (None if part is None else part.name for part in (offset, groups))
    return IntegerMatrix(form, (*parts, *extra), stored, bits, offset_name, groups_name)


def _bits(config: Mapping[str, Any]) -> int | None:
    """Of numbers in words: those that all groups of modules say."""
    groups = said_in(said_in(config, "quantization_config"), "config_groups").values()
    said = {said_in(group, "weights").get("num_bits") for group in groups if isinstance(group, Mapping)}
    (bits,) = said if len(said) == 1 else (None,)
    return bits if type(bits) is int and bits in WIDTHS else None
