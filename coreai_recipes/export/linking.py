"""What a target does for the functions that are assembled from its fragments."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Models = Mapping[str, Any]  # converted fragments by name, in the target's own form
Numbers = Mapping[str, NDArray[np.int32]]  # parameters that are no weights, by their names in a package


class Linker(Protocol):
    """One function of a target's program, written as fragments are appended in running order."""

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> None: ...

    def add_state(self, name: str, shape: tuple[int, ...]) -> None: ...

    def add_output(self, name: str) -> None: ...

    def add_integer(self, name: str, value: int) -> str:
        """A value of shape (1,) that is known; gives its name."""

    def add_integers(self, name: str, values: NDArray[np.int32]) -> str:
        """Whole numbers that stand in the program; gives their name."""

    def append(self, model: Any, prefix: str, names: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        """Append a converted fragment.

        `names` binds its inputs, outputs and states to names of this function, `parameters` its weight inputs to
        parameters of the decoder; every other name gets `prefix`.
        """
