"""bitsandbytes: bytes of two numbers of four bits, the first in the upper half, which name values of a table; or int8.

    nf4, fp4   NAME (n / 2, 1), NAME.absmax (n / blocksize), NAME.quant_map (16), NAME.quant_state.bitsandbytes__nf4,
               JSON with the shape; with NAME.nested_absmax and NAME.nested_quant_map absmax is stored so itself
    int8       NAME (O, I), SCB (O): number * SCB / 127

functional.py: QuantState.as_dict and dequantize_4bit, int8_vectorwise_dequant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coreai_recipes.checkpoint.base import TensorInfo
from coreai_recipes.checkpoint.quantised.packed import Packed, PackedMatrix, Read, Stored
from coreai_recipes.json_reader import load_json

if TYPE_CHECKING:
    from torch import Tensor

STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
MOST_STATE_BYTES = 4096
OF_INT8 = 7.874015718698502e-3  # 1 / 127 as it is written there


@dataclass(frozen=True)
class FourBitMatrix(PackedMatrix):
    """`said` is the JSON of its state."""

    stored: Stored
    said: Mapping[str, Any]

    packer: ClassVar[str] = "bitsandbytes"

    def prepare(self, read: Read) -> Callable[[range], Tensor]:
        import torch

        name = self.parts[0]
        values = self.whole(read, self.stored, f"{name}.quant_map").float()
        scales, size = self._scales(read), int(self.said["blocksize"])
        columns = self.info.shape[1]

        def make(rows: range) -> Tensor:
            first, last = rows.start * columns, rows.stop * columns
            data = read(name, range(first // 2, -(-last // 2))).flatten()
            numbers = torch.stack((data >> 4, data & 15), 1).flatten()[first % 2 :][: last - first]
            of_blocks = scales[first // size : -(-last // size)].repeat_interleave(size)[first % size :][: last - first]
            return (values[numbers.long()] * of_blocks).view(len(rows), columns)

        return make

    def _scales(self, read: Read) -> Tensor:
        name = self.parts[0]
        scales = self.whole(read, self.stored, f"{name}.absmax")
        if f"{name}.nested_absmax" not in self.stored:
            return scales.float()
        outer = self.whole(read, self.stored, f"{name}.nested_absmax").float()
        values = self.whole(read, self.stored, f"{name}.nested_quant_map").float()
        of_blocks = outer.repeat_interleave(int(self.said["nested_blocksize"]))[: len(scales)]
        return values[scales.long()] * of_blocks + float(self.said["nested_offset"])


@dataclass(frozen=True)
class Int8Matrix(PackedMatrix):
    stored: Stored

    packer: ClassVar[str] = "bitsandbytes"

    def prepare(self, read: Read) -> Callable[[range], Tensor]:
        scales = self.whole(read, self.stored, self.parts[1]).float()

        def make(rows: range) -> Tensor:
            return read(self.parts[0], rows).float() * scales[rows.start : rows.stop, None] * OF_INT8

        return make


def find_bitsandbytes(name: str, stored: Stored, read: Read | None) -> Packed | None:
    """The matrix whose numbers `name` holds; None where it holds none, its parts do not fit, or its shape, which is in
    the data, cannot be read."""
    info, owner = stored[name], name.removesuffix(".weight")
    beside = stored.get(f"{owner}.SCB")
    if owner != name and info.dtype == "I8" and beside is not None and beside.shape == info.shape[:1]:
        if len(info.shape) != 2:
            return None
        form = TensorInfo(name, info.shape, "bitsandbytes of 8 bits", info.file)
        extra = tuple(part for part in (f"{owner}.weight_format",) if part in stored)
        return Int8Matrix(form, (name, beside.name, *extra), stored)
    state = next((name + end for end in STATES if name + end in stored), None)
    if info.dtype != "U8" or state is None or read is None or math.prod(stored[state].shape) > MOST_STATE_BYTES:
        return None
    try:
        said = load_json(bytes(read(state, range(stored[state].shape[0])).tolist()))
    except ValueError:
        return None
    if not isinstance(said, Mapping) or not _fits(name, said, stored):
        return None
    beside_it = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
    parts = (name, state, *(name + end for end in beside_it if name + end in stored))
    kind = "fp4" if state.endswith("fp4") else "nf4"
    form = TensorInfo(name, tuple(said["shape"]), f"bitsandbytes {kind}", info.file)
    return FourBitMatrix(form, parts, stored, said)


def _fits(name: str, said: Mapping[str, Any], stored: Stored) -> bool:
    shape, size = said.get("shape"), said.get("blocksize")
    whole = (isinstance(shape, list) and len(shape) == 2) and all(type(n) is int and n > 0 for n in (*shape, size))
    if not whole or not {f"{name}.absmax", f"{name}.quant_map"} <= stored.keys():
        return False
    count = math.prod(shape)  # type: ignore[arg-type]
    blocks = -(-count // size)  # type: ignore[operator]
    fits = math.prod(stored[name].shape) == -(-count // 2) and stored[f"{name}.absmax"].shape == (blocks,)
    fits &= stored[f"{name}.quant_map"].shape == (16,) and stored[name].shape[1:] in ((), (1,))
    if f"{name}.nested_absmax" not in stored:
        return fits and stored[f"{name}.absmax"].dtype == "F32"
    inner, offset = said.get("nested_blocksize"), said.get("nested_offset")
    table, outer = stored.get(f"{name}.nested_quant_map"), stored[f"{name}.nested_absmax"]
    has_table = table is not None and table.shape == (256,) and isinstance(offset, float)
    return fits and has_table and type(inner) is int and inner > 0 and outer.shape == (-(-blocks // inner),)
