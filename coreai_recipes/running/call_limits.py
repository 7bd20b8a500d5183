"""What a call may ask, whatever runs it: runtimes answer the rest from other rows, or end. A leaf beside the errors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coreai_recipes.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor


def check_tokens(function: str, inputs: "Mapping[str, Tensor]", vocab_size: int) -> None:
    """Raise BundleError for a token outside a vocabulary of `vocab_size`."""
    if "input_ids" not in inputs:
        return
    for token in (int(bound) for bound in inputs["input_ids"].aminmax()):
        if not 0 <= token < vocab_size:
            raise BundleError(
                f"function {function} was called with the token {token}; the vocabulary has 0 to {vocab_size - 1}"
            )


def check_count(function: str, inputs: "Mapping[str, Tensor]") -> None:
    """Raise BundleError where a call says that it has more tokens than it is given, or none."""
    tokens = inputs.get("input_ids", inputs.get("embedding"))  # ids (1, S), or their rows (1, S, C)
    if tokens is None or "count" not in inputs:
        return
    count, query = int(inputs["count"][0]), tokens.shape[1]
    if not 1 <= count <= query:
        raise BundleError(f"function {function} was called with {count} tokens; a call takes 1 to {query}")
