"""The operations that can be evaluated: a catalogue, one file a family. Importing it fills the registry."""

from coreai_recipes.evaluate.operations import (
    binary,
    creation,
    indexing,
    layout,
    matrix,
    normalization,
    quantization,
    reduction,
    slicing,
    unary,
)

__all__ = [
    "binary",
    "creation",
    "indexing",
    "layout",
    "matrix",
    "normalization",
    "quantization",
    "reduction",
    "slicing",
    "unary",
]
