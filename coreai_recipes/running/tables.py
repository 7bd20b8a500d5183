"""Raw tables beside a package: rows of float16 that the host looks up by token and hands to the functions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.manifest.files import locate
from coreai_recipes.manifest.schema import Manifest


class Table:
    """Rows of the file at `path`, `width` float16 values each. The file is mapped: only the rows in use are read."""

    def __init__(self, path: Path, width: int) -> None:
        try:
            locate(path.parent, path.name)
            values = np.memmap(path, np.float16, mode="r")
        except BundleError as error:
            raise EvaluationError(*error.problems) from None
        except (OSError, ValueError) as error:  # missing, or empty
            raise EvaluationError(f"{path}: cannot be read: {error}") from None
        if len(values) % width:
            raise EvaluationError(f"{path}: {2 * len(values)} bytes are no whole rows of {2 * width}")
        self._rows = values.reshape(-1, width)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, input_ids: Tensor) -> Tensor:
        """The rows of `input_ids` (1, S), float16 (1, S, width)."""
        return torch.from_numpy(self._rows[input_ids[0].numpy()])[None]


class Tables:
    """A bundle's tables by the name of the input that takes their rows. A draft takes none."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables

    @classmethod
    def of_manifest(cls, folder: Path, manifest: Manifest) -> "Tables":
        """The tables that lie beside a manifest's programs."""
        found = {}
        for described in manifest.tables:
            rows, width = described.shape
            table = Table(folder / described.file, width)
            if len(table) != rows:
                raise EvaluationError(f"{folder / described.file}: has {len(table)} rows and must have {rows}")
            found[described.input] = table
        return cls(found)

    def with_rows(self, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`inputs` of a function, and the rows of its tokens."""
        taken = {} if function == "draft" else self._tables
        return {**inputs, **{name: table.rows(inputs["input_ids"]) for name, table in taken.items()}}
