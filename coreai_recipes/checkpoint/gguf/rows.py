"""Rows of a stored tensor as torch tensors: read into one reused buffer, then viewed or dequantised."""

from collections.abc import Iterator
from functools import cache
from math import prod

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from coreai_recipes.checkpoint.gguf.header import StoredTensor, stamp
from coreai_recipes.errors import CheckpointError

BLOCK_BYTES = 4 << 20  # of float32 values: what a block takes once it is dequantised

# Stored as plain floats: the bytes are viewed, so that F16 and BF16 keep the very bits that safetensors would hold.
PLAIN = {
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F64: torch.float64,
}


@cache
def is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether the values of `kind` can be had: a plain float, or a type that the installed gguf dequantises."""
    if kind in PLAIN:
        return True
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def rows_together(stored: StoredTensor) -> int:
    """How many rows can only be read together: those of one quantised block in a vector, else 1."""
    return GGML_QUANT_SIZES[stored.type][0] if len(stored.shape) == 1 else 1


def read_rows(stored: StoredTensor, rows: range, together: int) -> Iterator[Tensor]:
    """Blocks of `rows` (along the first axis) in float16, bfloat16 or float32; F64 is given as float32.

    `rows` starts and ends at a multiple of `together`, and so does each block. A block is valid until the next.
    Raises CheckpointError when the file is no longer the one whose header was read, or ends early.
    """
    group_bytes = stored.byte_count * together // stored.shape[0]
    group_values = prod(stored.shape[1:]) * together
    step = max(1, BLOCK_BYTES // (4 * group_values)) * together
    buffer = bytearray(min(step, len(rows)) // together * group_bytes)
    try:
        with open(stored.path, "rb", buffering=0) as file:
            if stamp(file) != stored.stamp:
                raise CheckpointError(f"{stored.path}: the file changed while it was open: start again")
            file.seek(stored.start + rows.start // together * group_bytes)
            for first in range(rows.start, rows.stop, step):
                count = min(step, rows.stop - first)
                view = memoryview(buffer)[: count // together * group_bytes]
                filled = 0
                while filled < len(view):
                    got = file.readinto(view[filled:])
                    if not got:
                        raise CheckpointError(f"{stored.path}: the file ends inside tensor {stored.name}")
                    filled += got
                yield _decode(stored, view, count)
    except OSError as error:
        raise CheckpointError(f"{stored.path}: cannot be read: {error.strerror or error}") from error


def _decode(stored: StoredTensor, data: memoryview, count: int) -> Tensor:
    shape = (count, *stored.shape[1:])
    if stored.type in PLAIN:
        values = torch.frombuffer(data, dtype=PLAIN[stored.type]).view(shape)
        return values.float() if stored.type == GGMLQuantizationType.F64 else values
    block, block_bytes = GGML_QUANT_SIZES[stored.type]
    blocks_per_row = shape[-1] // block
    packed = np.frombuffer(data, np.uint8).reshape(-1, blocks_per_row * block_bytes)
    with np.errstate(all="ignore"):  # a NaN or an overflow is refused by tensor where the values are used
        return torch.from_numpy(np.ascontiguousarray(dequantize(packed, stored.type), np.float32).reshape(shape))
