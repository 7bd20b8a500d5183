"""MLX: rows of numbers in words, with a scale and a bias for each group.

    NAME.weight (O, I b / 32), NAME.scales (O, G), NAME.biases (O, G)  ->  NAME.weight (O, I)

mlx.core.quantize: number * scale + bias. Of another layer than all, config.json's `quantization` has its own entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coreai_recipes.checkpoint.base import TensorInfo
from coreai_recipes.checkpoint.quantised.packed import (
    WORD_BITS,
    Packed,
    PackedMatrix,
    Read,
    Stored,
    numbers_in,
    said_in,
)

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (2, 4, 8)  # numbers of 3 and 6 bits lie across words
GROUP = 64  # mlx.core.quantize's default


@dataclass(frozen=True)
class MLXMatrix(PackedMatrix):
    bits: int

    packer: ClassVar[str] = "MLX"

    def prepare(self, read: Read) -> Callable[[range], Tensor]:
        def make(rows: range) -> Tensor:
            words, scales, biases = (read(part, rows) for part in self.parts)
            size = self.info.shape[1] // scales.shape[1]
            scale, bias = (part.float().repeat_interleave(size, 1) for part in (scales, biases))
            return numbers_in(words, self.bits) * scale + bias

        return make


def find_mlx(name: str, stored: Stored, config: Mapping[str, Any]) -> Packed | None:
    """The matrix whose numbers `name` holds, None where it holds none or its parts do not fit."""
    owner = name.removesuffix(".weight")
    info, scales, biases = stored[name], stored.get(f"{owner}.scales"), stored.get(f"{owner}.biases")
    if info.dtype != "U32" or scales is None or biases is None or len(info.shape) != 2 or len(scales.shape) != 2:
        return None
    said = said_in(config, "quantization") or said_in(config, "quantization_config")
    size = {**said, **said_in(said, owner)}.get("group_size", GROUP)
    outputs, groups = scales.shape
    if type(size) is not int or size < 1 or scales.shape != biases.shape or outputs != info.shape[0] or not groups:
        return None
    bits, left = divmod(info.shape[1] * WORD_BITS, groups * size)
    if left or bits not in WIDTHS:
        return None
    form = TensorInfo(name, (outputs, groups * size), f"MLX of {bits} bits", info.file)
    return MLXMatrix(form, (name, scales.name, biases.name), bits)
