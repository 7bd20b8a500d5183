"""Reads tensors out of weight.bin."""

import io
import os
import struct
import threading
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, Array, decode_elements
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.manifest.files import locate

# One record: the mark, the element type, the size in bytes, the offset of the data, the padding in bits.
RECORD = struct.Struct("<IIQQQ")
RECORD_BYTES = 64
RECORD_MARK = 0xDEADBEEF
BLOCK_BYTES = 8 << 20


class BlobFile:
    """One weight.bin, opened when needed and read with `readinto`: a mapped page would stay resident until the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    @cached_property
    def _file(self) -> io.FileIO:
        try:
            locate(self.path.parent, self.path.name)
            return self.path.open("rb", buffering=0)
        except BundleError as error:
            raise EvaluationError(*error.problems) from None
        except OSError as error:
            raise EvaluationError(f"{self.path}: the program's weights cannot be read: {error.strerror}") from None

    @cached_property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def locate(self, offset: int, element_type: str, count: int) -> int:
        """Where the data of the record at `offset` begins; raises when it does not hold `count` elements."""
        if offset + RECORD_BYTES > self.size:
            raise EvaluationError(f"{self.path}: is {self.size} bytes, but the program needs a weight at byte {offset}")
        mark, _, size, start, padding = RECORD.unpack(self.read_bytes(offset, RECORD.size).tobytes())
        if mark != RECORD_MARK:
            raise EvaluationError(f"{self.path}: there is no weight at byte {offset}, where the program needs one")
        if start + size > self.size:
            raise EvaluationError(
                f"{self.path}: is {self.size} bytes, but the weight at byte {offset} ends at byte {start + size}: "
                "the file is truncated"
            )
        # Older writers leave the padding of types below a byte at zero.
        bits = count * ELEMENT_TYPES[element_type].bits
        if size * 8 - padding != bits and size != -(-bits // 8):
            raise EvaluationError(
                f"{self.path}: the weight at byte {offset} has {size} bytes, the program needs {count} {element_type}"
            )
        return int(start)

    def read_bytes(self, start: int, count: int) -> Array:
        """`count` bytes from `start`, uint8."""
        raw = np.empty(count, np.uint8)
        view = raw.data
        done = 0
        with self._lock:
            self._file.seek(start)
            while done < count:
                got = self._file.readinto(view[done:])
                if not got:
                    raise EvaluationError(f"{self.path}: ended at byte {start + done}, {count - done} bytes too early")
                done += got
        return raw

    def read(self, offset: int, element_type: str, count: int) -> Array:
        """The elements of the record at `offset`, in the stored type, flat."""
        kind = ELEMENT_TYPES[element_type]
        raw = self.read_bytes(self.locate(offset, element_type, count), -(-count * kind.bits // 8))
        return decode_elements(raw, kind, count)

    def read_float32(self, offset: int, element_type: str, count: int) -> torch.Tensor:
        """The same as float32, flat, converted block by block: a table is never here in two precisions at once."""
        kind = ELEMENT_TYPES[element_type]
        start = self.locate(offset, element_type, count)
        size = np.dtype(kind.stored).itemsize
        result = torch.empty(count, dtype=torch.float32)
        step = BLOCK_BYTES // size
        for first in range(0, count, step):
            length = min(step, count - first)
            raw = self.read_bytes(start + first * size, length * size)
            result[first : first + length].copy_(torch.from_numpy(raw.view(kind.stored)))
        return result

    def read_rows(self, offset: int, element_type: str, shape: tuple[int, ...], rows: list[int]) -> Array:
        """Some rows of the first axis; each must fill whole bytes. (len(rows), *shape[1:])"""
        kind = ELEMENT_TYPES[element_type]
        elements = 1
        for size in shape[1:]:
            elements *= size
        start = self.locate(offset, element_type, elements * shape[0])
        row_bytes = elements * kind.bits // 8
        parts = []
        done = 0
        while done < len(rows):
            length = 1
            while done + length < len(rows) and rows[done + length] == rows[done] + length:
                length += 1
            raw = self.read_bytes(start + rows[done] * row_bytes, length * row_bytes)
            parts.append(decode_elements(raw, kind, length * elements))
            done += length
        return np.concatenate(parts).reshape(len(rows), *shape[1:])
