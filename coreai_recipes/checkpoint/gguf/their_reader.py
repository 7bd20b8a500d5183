"""gguf's own reader, which transformers reads a file with, in less time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np


@contextmanager
def mapped_plainly() -> Iterator[None]:
    """While a file is opened: its bytes are a plain array over the mapping. Each of the reader's hundreds of thousands
    of slices of a `numpy.memmap` would be one again, which costs more than all else that it does."""
    mapping = np.memmap

    def plain(*arguments: Any, **named: Any) -> Any:
        return mapping(*arguments, **named).view(np.ndarray)

    with patch.object(np, "memmap", plain):
        yield
