"""GPTQ and AWQ: columns of numbers in words, with a scale and an offset for each group of inputs and each output.

    GPTQ   NAME.qweight (I b / 32, O), a word b-bit numbers of inputs; NAME.qzeros (G, O b / 32), from 1 on in its first
           format; NAME.scales (G, O); NAME.g_idx (I), the group of each input    ->  NAME.weight (O, I)
    AWQ    NAME.qweight (I, O / 8), a word eight outputs in the order of its kernel; NAME.qzeros (G, O / 8); NAME.scales

What AutoGPTQ's and GPTQModel's QuantLinear and AutoAWQ's WQLinear_GEMM write: (number - offset) * scale.
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

QWEIGHT, QZEROS, SCALES, GROUPS = ".qweight", ".qzeros", ".scales", ".g_idx"
WIDTHS = (2, 4, 8)  # numbers of 3 bits lie across words
AWQ_BITS = 4
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in a word of each of eight outputs


@dataclass(frozen=True)
class GPTQMatrix(PackedMatrix):
    """`first` is what is added to its offsets."""

    stored: Stored
    bits: int
    first: int

    packer: ClassVar[str] = "GPTQ"

    def grid(self, read: Read) -> Grid | None:
        zeros, scales = (self.whole(read, self.stored, part) for part in self.parts[1:3])
        groups = dict(enumerate(self.parts)).get(3)
        if not are_float16(scales) or not self.is_in_runs(read, self.stored, groups, len(scales)):
            return None
        offsets = (numbers_in(zeros, self.bits) + self.first) & ((1 << self.bits) - 1)
        is_centred = bool((offsets == 1 << self.bits - 1).all())
        return Grid(max(4, self.bits), self.info.shape[1] // len(scales), is_centred)

    def prepare(self, read: Read) -> Callable[[range], Tensor]:
        words, zeros, scales = (self.whole(read, self.stored, part) for part in self.parts[:3])
        offsets = (numbers_in(zeros, self.bits) + self.first) & ((1 << self.bits) - 1)
        group = self.group_of(read, self.stored, dict(enumerate(self.parts)).get(3), len(scales))

        def make(rows: range) -> Tensor:
            columns = slice(rows.start, rows.stop)
            numbers = numbers_in(words[:, columns].t(), self.bits)
            scale = scales[:, columns].t().float()
            return (numbers - offsets[:, columns].t()[:, group]) * scale[:, group]

        return make


@dataclass(frozen=True)
class AWQMatrix(PackedMatrix):
    stored: Stored

    packer: ClassVar[str] = "AWQ"

    def grid(self, read: Read) -> Grid | None:
        scales = self.whole(read, self.stored, self.parts[2])
        return Grid(AWQ_BITS, self.info.shape[1] // len(scales), False) if are_float16(scales) else None

    def prepare(self, read: Read) -> Callable[[range], Tensor]:
        import torch

        words, zeros, scales = (self.whole(read, self.stored, part) for part in self.parts)
        place = torch.tensor(AWQ_ORDER)
        group = self.group_of(read, self.stored, None, len(scales))

        def outputs(packed: Tensor, rows: range) -> Tensor:
            first, last = rows.start // 8, -(-rows.stop // 8)
            numbers = numbers_in(packed[:, first:last], AWQ_BITS).view(len(packed), -1, 8)
            return numbers[:, :, place].flatten(1)[:, rows.start - 8 * first : rows.stop - 8 * first]

        def make(rows: range) -> Tensor:
            scale = scales[:, rows.start : rows.stop].float()[group]
            return ((outputs(words, rows) - outputs(zeros, rows)[group]) * scale).t().contiguous()

        return make


def find_gptq(name: str, stored: Stored, config: Mapping[str, Any]) -> Packed | None:
    """The matrix whose numbers `name` holds, None where it holds none or its parts do not fit."""
    owner = name.removesuffix(QWEIGHT)
    parts = [owner + part for part in (QWEIGHT, QZEROS, SCALES)]
    if owner == name or not all(part in stored and len(stored[part].shape) == 2 for part in parts):
        return None
    said = said_in(config, "quantization_config")
    words, zeros, scales = (stored[part].shape for part in parts)
    groups, outputs = scales
    if said.get("quant_method") == "awq":
        shape = (8 * words[1], words[0])
        fits = outputs == shape[0] and zeros == (groups, words[1]) and groups and words[0] % groups == 0
        if not fits or said.get("bits", AWQ_BITS) != AWQ_BITS or said.get("version", "gemm") not in ("gemm", "GEMM"):
            return None
        info = TensorInfo(f"{owner}.weight", shape, "AWQ of 4 bits", stored[name].file)
        return AWQMatrix(info, tuple(parts), stored)
    bits = said.get("bits")
    if bits not in WIDTHS or type(bits) is not int:
        return None
    shape = (outputs, words[0] * WORD_BITS // bits)
    of_inputs = stored.get(owner + GROUPS)
    fits = words[1] == outputs and zeros == (groups, outputs * bits // WORD_BITS) and groups > 0
    fits &= of_inputs.shape == shape[1:] if of_inputs is not None else shape[1] % groups == 0
    if not fits:
        return None
    first = 0 if said.get("checkpoint_format") == "gptq_v2" else 1
    parts += [owner + GROUPS] if of_inputs is not None else []
    info = TensorInfo(f"{owner}.weight", shape, f"GPTQ of {bits} bits", stored[name].file)
    return GPTQMatrix(info, tuple(parts), stored, bits, first)
