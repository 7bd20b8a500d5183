"""What runs a package, and a function of it, whatever it is that runs them."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    Watch = Callable[[str, Tensor, str], None]  # is told the name of a value, itself, and the operation


class Function(Protocol):
    """A function of a package. `overflowed` and `nans` name the operations of its last call where infinity and NaN
    began, as far as that is seen."""

    @property
    def overflowed(self) -> Collection[str]: ...

    @property
    def nans(self) -> Collection[str]: ...

    def __call__(self, inputs: Mapping[str, Any], state: Any, watch: "Watch | None" = None) -> "dict[str, Tensor]": ...


class Engine(Protocol):
    """What runs packages: the evaluator, Core ML, Core AI, or a chain of one of these."""

    def function(self, name: str) -> Function: ...

    def make_state(self) -> Any: ...
