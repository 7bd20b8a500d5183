"""Raw tables beside a package: rows that the host looks up by token and hands to the functions as float16."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.manifest.files import locate
from coreai_recipes.manifest.schema import Manifest

EMBEDDED = "embedding"
BITS = {"float16": 16, "int8": 8, "int4": 4}


class Table:
    """Rows of the file at `path`, `width` values each: float16, or integers and behind them all the scales of each
    `block` of a row. The file is mapped: only the rows in use are read."""

    def __init__(self, path: Path, width: int, dtype: str = "float16", block: int | None = None) -> None:
        try:
            locate(path.parent, path.name)
            values = np.memmap(path, np.uint8, mode="r")
        except BundleError as error:
            raise EvaluationError(*error.problems) from None
        except (OSError, ValueError) as error:  # missing, or empty
            raise EvaluationError(f"{path}: cannot be read: {error}") from None
        data, scales = BITS[dtype] * width // 8, 2 * (width // block) if block else 0
        rows, left = divmod(len(values), data + scales)
        if left:
            raise EvaluationError(f"{path}: {len(values)} bytes are not whole rows of {data + scales}")
        self._dtype = dtype
        self._data = values[: rows * data].reshape(rows, data)
        self._scales = values[rows * data :].reshape(rows, scales)

    def __len__(self) -> int:
        return len(self._data)

    def rows(self, input_ids: Tensor) -> Tensor:
        """The rows of `input_ids` (1, S), float16 (1, S, width)."""
        return torch.from_numpy(self.read(input_ids[0].numpy()))[None]

    def read(self, rows: NDArray[Any]) -> NDArray[np.float16]:
        """Some rows, (S, width)."""
        data: NDArray[np.uint8] = self._data[rows]
        if self._dtype == "float16":
            return data.view(np.float16)
        if self._dtype == "int4":  # the first of two in the lower bits, two's complement
            data = np.stack((data << 4, data & 0xF0), -1).reshape(len(data), -1)
            values = (data.view(np.int8) >> 4).astype(np.float32)
        else:
            values = data.view(np.int8).astype(np.float32)
        scales = self._scales[rows].view(np.float16).astype(np.float32)
        given_back = values * scales.repeat(values.shape[1] // scales.shape[1], 1)
        return np.asarray(given_back, np.float16)


class Tables:
    """A bundle's tables by the name of the input that takes their rows. Of a draft that is `embedding` alone, whose
    rows stand for the ids themselves."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables

    @classmethod
    def of_manifest(cls, folder: Path, manifest: Manifest) -> "Tables":
        """The tables that lie beside a manifest's programs."""
        found = {}
        for described in manifest.tables:
            rows, width = described.shape
            block = None if described.scales is None else described.scales.block
            table = Table(folder / described.file, width, described.dtype, block)
            if len(table) != rows:
                raise EvaluationError(f"{folder / described.file}: has {len(table)} rows and must have {rows}")
            found[described.input] = table
        return cls(found)

    def with_rows(self, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`inputs` of a function, and the rows of its tokens: of a per-layer table that of token 0 for those that have
        none of their own, as in transformers."""
        taken = [name for name in self._tables if function != "draft" or name == EMBEDDED]
        rows = dict[str, Tensor]()
        for name in taken:
            ids, table = inputs["input_ids"], self._tables[name]
            rows[name] = table.rows(ids if name == EMBEDDED else torch.where(ids < len(table), ids, 0))
        replaced = {"input_ids"} if EMBEDDED in rows else set()
        return {**{name: value for name, value in inputs.items() if name not in replaced}, **rows}
