"""Raw tables beside a package: rows of float16 that the host looks up by token and hands to the functions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Table:
    """Rows of the file at `path`, `width` float16 values each. The file is mapped: only the rows in use are read."""

    def __init__(self, path: Path, width: int) -> None:
        self._rows = np.memmap(path, np.float16, mode="r").reshape(-1, width)

    def rows(self, input_ids: Tensor) -> Tensor:
        """The rows of `input_ids` (1, S), float16 (1, S, width)."""
        return torch.from_numpy(self._rows[input_ids[0].numpy()])[None]


def open_tables(folder: Path, packages: list[dict[str, Any]]) -> dict[str, Table]:
    """The tables among a manifest's `packages`, by the name of the input that takes their rows."""
    return {
        entry["input"]: Table(folder / entry["file"], entry["shape"][1])
        for entry in packages
        if entry["role"] == "table"
    }


def with_rows(inputs: Mapping[str, Tensor], tables: Mapping[str, Table]) -> dict[str, Tensor]:
    """`inputs` of a function, and the rows of its tokens."""
    return {**inputs, **{name: table.rows(inputs["input_ids"]) for name, table in tables.items()}}
