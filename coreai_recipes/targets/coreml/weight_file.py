"""weight.bin: Core ML's blob storage, streamed to where `storage.layout` has each blob.

coremltools' own writer takes a tensor whole; this one takes it in blocks, and a test holds the two to the same bytes.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from coreai_recipes.export.streaming import Encoded, HashedFile, Writing
from coreai_recipes.storage.layout import DATA_TYPES, HEADER, RECORD, SENTINEL, VERSION, Blob, WeightLayout


def write_weights(path: Path, layout: WeightLayout, encoded: Mapping[str, Iterable[Encoded]]) -> Writing:
    """Write every blob of `layout`, block by block."""
    with HashedFile(path) as file:
        file.write(HEADER.pack(sum(len(placed.blobs) for placed in layout.placed.values()), VERSION))
        position = HEADER.size
        for name, placed in layout.placed.items():
            values = iter(encoded[name])
            following = next(values, None)
            for number, blob in enumerate(placed.blobs):
                file.write(bytes(blob.offset - position))
                file.write(_record(blob))
                written = 0
                while following is not None and following[0] == number:
                    file.write(following[1].reshape(-1).view(np.uint8).data)
                    written += following[1].nbytes
                    yield name, following[1].nbytes
                    following = next(values, None)
                if written != blob.part.bytes:
                    raise RuntimeError(f"{name}: {written} bytes came, {blob.part.bytes} were laid out")
                position = blob.end
            if following is not None:
                raise RuntimeError(f"{name}: more came than was laid out")
        for blob in (blob for placed in layout.blocks.values() for blob in placed.blobs):
            file.write(bytes(blob.offset - position))
            file.write(_record(blob))
            position = blob.end
    return file.digest.hexdigest()


def _record(blob: Blob) -> bytes:
    kind = DATA_TYPES[blob.part.dtype]
    return RECORD.pack(SENTINEL, kind, blob.part.bytes, blob.start, blob.part.padding_bits)
