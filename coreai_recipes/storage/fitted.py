"""A parameter's blobs that were chosen before they are written: they wait in files, so that memory holds none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.storage.base import Part, Shape, Storage
from coreai_recipes.storage.float16 import BeyondFloat16

BLOCK_BYTES = 4 << 20
NUMPY = {"float16": np.float16, "int8": np.int8}


@dataclass(frozen=True)
class Fitted:
    """The blobs of a parameter of `shape`, without the factor that the exported form gives it."""

    tensor: str
    shape: Shape
    storage: Storage
    files: tuple[Path, ...]

    @classmethod
    def write(
        cls, folder: Path, tensor: str, shape: Shape, storage: Storage, values: Iterable[tuple[int, NDArray[Any]]]
    ) -> Self:
        """Keep the values of all parts, in any order of parts, in new files of `folder`."""
        number = sum(1 for _ in folder.iterdir())
        paths = tuple(folder / f"{number}_{part.operand}" for part in storage.parts(shape))
        files = [path.open("wb") for path in paths]
        try:
            for part, found in values:
                files[part].write(found.reshape(-1).view(np.uint8).data)
        finally:
            for file in files:
                file.close()
        return cls(tensor, shape, storage, paths)

    def read(self) -> list[NDArray[Any]]:
        """The values of each part, flat; those of fewer than 8 bits packed."""
        both = zip(self._parts, self.files, strict=True)
        return [np.fromfile(path, NUMPY.get(part.dtype, np.uint8)) for part, path in both]

    def replace(self, part: int, values: NDArray[Any]) -> Self:
        """With other values of one part."""
        values.tofile(self.files[part])
        return self

    def encoded(self, factor: float) -> Iterator[tuple[int, NDArray[Any]]]:
        """As `Storage.encode` gives them, of the parameter times `factor`, which palettes and scales take up.

        Raises BeyondFloat16 where float16 cannot hold that.
        """
        for number, (part, path) in enumerate(zip(self._parts, self.files, strict=True)):
            dtype = NUMPY.get(part.dtype, np.uint8)
            with path.open("rb") as file:
                while data := file.read(BLOCK_BYTES):
                    values = np.frombuffer(data, dtype)
                    yield number, self._scaled(values, part, factor)

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self.storage.parts(self.shape)

    def _scaled(self, values: NDArray[Any], part: Part, factor: float) -> NDArray[Any]:
        if factor == 1.0 or part.dtype != "float16":
            return values
        exact = values.astype(np.float32) * np.float32(factor)
        found = exact.astype(np.float16)
        if not np.isfinite(found).all():
            largest = float(np.abs(exact).max())
            raise BeyondFloat16(self.tensor, largest, largest)
        return found
