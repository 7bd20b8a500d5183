"""Tables whose rows a host looks up and hands to a package: the forms that it can read, and what it is told of them."""

from dataclasses import replace
from math import prod
from typing import Any

from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.float16 import Float16
from coreai_recipes.storage.integers import Integers

WORDS = "a host reads rows of float16, int8 or int4, without offsets"


def fit_rows(said: Storage, shape: Shape) -> tuple[Storage, str | None]:
    """What becomes of a way of storing, and why where it is another one."""
    if isinstance(said, Float16):
        return said, None
    if not isinstance(said, Integers):
        return Float16(), WORDS
    if shape[1] * said.bits % 8:
        return Float16(), f"rows of {shape[1]} numbers of {said.bits} bits do not end at a byte"
    fitted = replace(said, symmetric=True).fitted(shape)
    return fitted, said.misfit(shape) if said.symmetric else WORDS


def describe_rows(storage: Storage, shape: Shape) -> dict[str, Any]:
    """Of the file with all data and then all scales: what a manifest says of it."""
    data, *scales = storage.parts(shape)
    found: dict[str, Any] = {"dtype": data.dtype, "shape": list(shape), "row_bytes": data.bytes // shape[0]}
    for scale in scales:
        block = prod(shape) // prod(scale.shape)
        found["scales"] = {"dtype": scale.dtype, "block": block, "offset": data.bytes}
    return found
