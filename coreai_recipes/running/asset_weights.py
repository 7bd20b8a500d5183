"""The weights of an .aimodel as its program has them: the evaluator's constants over the asset's blobs."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from coreai_recipes.aimodel.folder import PROGRAM, blob_name, places_in
from coreai_recipes.evaluate.blob import BlobFile
from coreai_recipes.evaluate.constants import BlobConstant, Constant, DecompressedConstant
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.running.coreai_process import CoreAIProcess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from coreai_recipes.aimodel.dense import Decompress, Part, Weight

BLOCK_NUMBERS = 8 << 20  # that are decompressed at once, where rows can be had by themselves
# the operations of MIL that mean the same, operand by operand
OF_MIL = {"lut_to_dense": "constexpr_lut_to_dense", "blockwise_shift_scale": "constexpr_blockwise_shift_scale"}


class _Blobs(BlobFile):
    """A program's file, in which blobs lie without a record before them."""

    def locate(self, offset: int, element_type: str, count: int) -> int:
        if offset > self.size:
            raise EvaluationError(f"{self.path}: is {self.size} bytes, but a weight begins at byte {offset}")
        return offset


def constants_of(asset: Path) -> dict[str, Constant]:
    """The weights by the names of their blobs. Raises UserError for an asset that cannot be read."""
    from coreai_recipes.running.coreai import check_coreai, check_hash

    check_coreai()
    check_hash(asset)
    process = CoreAIProcess(asset)
    try:
        weights: list[Weight] = process.ask("weights")
    finally:
        process.close()
    blobs, places = _Blobs(asset / PROGRAM), places_in(asset)
    return {weight.name: _constant(weight, blobs, places) for weight in weights}


def differing(asset: Path, expected: Mapping[str, Iterable["NDArray[Any]"]]) -> list[str]:
    """The parameters, each one blob of an asset, that do not lie there with just the numbers that are `expected` of
    them. Each is read once, as much at a time as there is in a block of the numbers."""
    places = places_in(asset)
    with (asset / PROGRAM).open("rb") as file:
        return [name for name, blocks in expected.items() if not _holds(file, places.get(blob_name(name, "")), blocks)]


def _holds(file: BinaryIO, place: tuple[int, int] | None, blocks: Iterable["NDArray[Any]"]) -> bool:
    start, left = place or (0, 0)
    file.seek(start)
    for block in blocks:
        left -= block.nbytes
        if left < 0 or file.read(block.nbytes) != block.tobytes():
            return False
    return left == 0


def decompressing(asset: Path) -> "Decompress":
    """What gives the numbers of a compressed weight of the asset, float16, in blocks of rows."""
    blobs, places = _Blobs(asset / PROGRAM), places_in(asset)

    def decompress(weight: "Weight") -> Iterator[memoryview]:
        constant = _constant(weight, blobs, places)
        rows, count = constant.shape[0], max(1, BLOCK_NUMBERS // prod(constant.shape[1:]))
        for first in range(0, rows, count):
            block = constant.rows(list(range(first, min(first + count, rows))))
            if block is None:  # rows that share a byte
                yield constant.stored().contiguous().numpy().reshape(-1).view("u1").data
                return
            yield block.contiguous().numpy().reshape(-1).view("u1").data

    return decompress


def _constant(weight: "Weight", blobs: BlobFile, places: Mapping[str, tuple[int, int]]) -> Constant:
    parts = {name: _blob(part, blobs, places) for name, part in weight.parts.items()}
    if weight.operation is None:
        return parts[""]
    return DecompressedConstant("float16", weight.shape, OF_MIL[weight.operation], {**parts}, 0)


def _blob(part: "Part", blobs: BlobFile, places: Mapping[str, tuple[int, int]]) -> BlobConstant:
    return BlobConstant(part.dtype, part.shape, blobs, places[part.blob][0])
