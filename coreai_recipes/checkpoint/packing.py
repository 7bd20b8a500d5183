"""Weights that safetensors hold in parts, presented as the tensors that they stand for; here small floats, and their
scales, of others the forms in `quantised`.

    MXFP4 (gpt-oss)   NAME_blocks (E, R, G, 16), a byte two values, and NAME_scales (E, R, G)  ->  NAME (E, 32 G, R)
    FP8 (DeepSeek)    NAME (R, C) in F8_E4M3 and NAME_scale_inv (R / block, C / block)         ->  NAME (R, C)
        (ModelOpt, compressed-tensors)    the same with NAME_scale, of blocks, of rows, or one for all

Formats: OCP Microscaling Formats (MX) 1.0, tables 3 and 7; config.json's quantization_config has FP8's block sizes.
Names and axes are those that transformers gives a model that it dequantises while it loads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from coreai_recipes.checkpoint.base import Grid, TensorInfo
from coreai_recipes.checkpoint.quantised.bitsandbytes import find_bitsandbytes
from coreai_recipes.checkpoint.quantised.compressed_tensors import find_compressed
from coreai_recipes.checkpoint.quantised.gptq import find_gptq
from coreai_recipes.checkpoint.quantised.mlx import find_mlx
from coreai_recipes.checkpoint.quantised.packed import PIECE_ELEMENTS, Packed, Read, said_in

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS, EXPONENTS = "_blocks", "_scales"
SCALE = "_scale_inv"
# of what a weight multiplies, where a kernel multiplies in few bits too; of keys and values that are kept so
BESIDE = tuple(f".{part}_{what}" for part in ("activation", "input", "output") for what in ("scale", "zero_point"))
OF_CACHES = (".k_scale", ".v_scale", ".q_scale")
FP8 = "F8_E4M3"
FP8_BLOCK = [128, 128]  # quantization_config's default
MX_BLOCK = 32  # values that share an exponent
MX_BIAS = 127
MX_SHIFTS = (-23, 13)  # half of the least is float16's smallest number, six times the largest not beyond its end
# e2m1: a sign, two bits of exponent, one of fraction
FP4_VALUES = tuple(sign * value for sign in (1.0, -1.0) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))

# How others pack a weight: what stands at the end of a tensor's name, its dtypes, and at the end of one beside it. MLX:
# mlx.core.quantize; GPTQ and AWQ: what AutoGPTQ and AutoAWQ write; compressed-tensors: pack-quantized; modelopt: its
# NVFP4 export; bitsandbytes: functional.py, QuantState, and nn/modules.py, Int8Params.
_FOREIGN: tuple[tuple[str, str, tuple[str, ...] | None, tuple[str, ...]], ...] = (
    ("MLX", ".weight", ("U32",), (".scales",)),
    ("GPTQ or AWQ", ".qweight", None, (".scales", ".qzeros")),
    ("compressed-tensors", ".weight_packed", None, (".weight_scale",)),
    ("NVIDIA's Model Optimizer in NVFP4", ".weight", ("U8",), (".weight_scale_2",)),
    (
        "bitsandbytes",
        ".weight",
        ("U8", "I8"),
        (".weight.absmax", ".SCB", ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4"),
    ),
)


@dataclass(frozen=True)
class PackedMX(Packed):
    """Experts in MXFP4, a row of the stored matrix being a column of the presented one. An expert is a block."""

    info: TensorInfo
    parts: tuple[str, str]

    packer: ClassVar[str] = "MXFP4"

    def grid(self, read: Read) -> Grid | None:
        """All values are halves of whole numbers up to 12: int8, with a scale of half the block's."""
        import torch

        shift = torch.stack([read(self.parts[1], range(e, e + 1)) for e in range(self.info.shape[0])]).int() - MX_BIAS
        held = MX_SHIFTS[0] <= int(shift.min()) and int(shift.max()) <= MX_SHIFTS[1]
        return Grid(8, MX_BLOCK, transposed=True) if held else None

    def blocks(self, read: Read, rows: range) -> Iterator[Tensor]:
        import torch

        values = torch.tensor(FP4_VALUES, dtype=torch.bfloat16)
        pairs = torch.stack((values.repeat(16), values.repeat_interleave(16)), 1)  # of a byte: low half first
        for expert in rows:
            one = range(expert, expert + 1)
            data, exponents = (read(part, one)[0] for part in self.parts)
            matrix = torch.empty((*data.shape[:2], MX_BLOCK), dtype=torch.bfloat16)
            step = max(1, PIECE_ELEMENTS // math.prod(matrix.shape[1:]))
            for start in range(0, len(matrix), step):
                piece = pairs[data[start : start + step].int()].flatten(-2)
                shift = exponents[start : start + step, :, None].int() - MX_BIAS
                torch.ldexp(piece, shift, out=matrix[start : start + step])
            yield matrix.flatten(1).t().unsqueeze(0)


@dataclass(frozen=True)
class PackedFP8(Packed):
    """A matrix in FP8 with a scale for each block of (rows, columns), or with one for all when `scale_rows` is 0."""

    info: TensorInfo
    parts: tuple[str, str]
    scale_rows: int
    block: tuple[int, int]

    packer: ClassVar[str] = "FP8"

    def blocks(self, read: Read, rows: range) -> Iterator[Tensor]:
        import torch

        name, scale = self.parts
        of_blocks = read(scale, range(self.scale_rows or 1)).float()
        of_blocks = of_blocks.view(self.scale_rows, -1) if self.scale_rows else of_blocks
        height, width = self.block
        columns = self.info.shape[1]
        step = max(1, PIECE_ELEMENTS // columns)
        for start in range(rows.start, rows.stop, step):
            piece = range(start, min(start + step, rows.stop))
            weight = read(name, piece).view(torch.float8_e4m3fn).float()
            if self.scale_rows:
                of_rows = of_blocks[torch.arange(piece.start, piece.stop) // height]
                yield weight.mul_(of_rows.repeat_interleave(width, 1)[:, :columns])
            else:
                yield weight.mul_(of_blocks)


def unpack(
    stored: Mapping[str, TensorInfo], config: Mapping[str, Any], read: Read | None = None
) -> tuple[dict[str, TensorInfo], dict[str, Packed]]:
    """The tensors that a checkpoint presents, and those of them that are stored in parts.

    Parts that do not fit one another stay what they are: `why_unreadable`, `find_foreign` and the binding name them.
    Without `read` there are headers alone, which do not say everything of every form.
    """
    packed: dict[str, Packed] = {}
    for name, info in stored.items():
        found = (
            _find_mx(name, info, stored)
            or _find_fp8(name, info, stored, config)
            or find_gptq(name, stored, config)
            or find_compressed(name, stored, config)
            or find_mlx(name, stored, config)
            or find_bitsandbytes(name, stored, read)
        )
        if found and (found.info.name == name or found.info.name not in stored):
            packed[found.info.name] = found
    parts = {part for each in packed.values() for part in each.parts}
    owners = {name.removesuffix("weight") for name in packed}
    parts |= {name for name in stored if name.endswith(BESIDE) and name[: name.rindex(".") + 1] in owners}
    parts |= {name for name in stored if packed and name.endswith(OF_CACHES)}
    presented = {name: info for name, info in stored.items() if name not in parts}
    return presented | {name: each.info for name, each in packed.items()}, packed


def describe_packing(packed: Mapping[str, Packed]) -> str | None:
    """What the weights are dequantised from, None where they are stored as they are."""
    forms = Counter("FP8" if isinstance(each, PackedFP8) else each.info.dtype for each in packed.values())
    return " and ".join(f"{form} ({count})" for form, count in forms.most_common()) or None


def find_foreign(stored: Mapping[str, TensorInfo]) -> str | None:
    """The end of a sentence that says who packed these tensors, None where nobody did whose packing is known."""
    for packer, end, dtypes, beside in _FOREIGN:
        found = [
            name
            for name, info in stored.items()
            if name.endswith(end)
            and (dtypes is None or info.dtype in dtypes)
            and any(name.removesuffix(end) + other in stored for other in beside)
        ]
        if found:
            more = f" and {len(found) - 1} more are" if len(found) > 1 else " is"
            return (
                f"{min(found)} ({stored[min(found)].dtype}){more} packed by {packer}, in a form that is not read\n"
                "  use the checkpoint that they were quantised from, or a GGUF file of the model"
            )
    return None


def _find_mx(name: str, info: TensorInfo, stored: Mapping[str, TensorInfo]) -> PackedMX | None:
    whole = name.removesuffix(BLOCKS)
    exponents = stored.get(whole + EXPONENTS)
    if whole == name or exponents is None or {info.dtype, exponents.dtype} != {"U8"}:
        return None
    if len(info.shape) != 4 or info.shape[3] != MX_BLOCK // 2 or exponents.shape != info.shape[:3] or whole in stored:
        return None
    experts, rows, groups = exponents.shape
    return PackedMX(TensorInfo(whole, (experts, MX_BLOCK * groups, rows), "MXFP4", info.file), (name, exponents.name))


def _find_fp8(
    name: str, info: TensorInfo, stored: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> PackedFP8 | None:
    scale = next((stored[name + end] for end in (SCALE, "_scale") if name + end in stored), None)
    if info.dtype != FP8 or len(info.shape) != 2 or scale is None or scale.dtype not in ("F32", "BF16", "F16"):
        return None
    rows, columns = info.shape
    if scale.shape in ((rows, 1), (rows,)) and rows > 1:
        return PackedFP8(info, (name, scale.name), rows, (1, columns))
    block = _block(config)
    if block is None:
        return None
    of_blocks = tuple(-(-size // of) for size, of in zip(info.shape, block, strict=True))
    if scale.shape not in (of_blocks, (), (1,)):
        return None
    return PackedFP8(info, (name, scale.name), scale.shape[0] if scale.shape == of_blocks else 0, block)


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale, as transformers or compressed-tensors say it."""
    said = said_in(config, "quantization_config")
    groups = (said_in(g, "weights") for g in said_in(said, "config_groups").values() if isinstance(g, Mapping))
    of_groups = next((block for group in groups if (block := group.get("block_structure"))), FP8_BLOCK)
    block = said.get("weight_block_size") or of_groups
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        return None
    return block[0], block[1]
