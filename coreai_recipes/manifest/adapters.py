"""What a manifest says of adapters whose matrices are inputs of the functions."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.manifest.fields import AdapterName, Count, Described, File, FileName, Name, Size, Text


class AdapterInput(Described):
    """An input that takes A, (layers, rank, in), or B transposed, (layers, rank, out), of one `matrix` of the `layers`
    of a `kind`: y = W x + B A x. It lies from byte `offset` of an adapter's file on."""

    dtype: Literal["float16"]
    shape: Annotated[tuple[Count, ...], Field(min_length=3, max_length=3)]
    role: Literal["a", "b"]
    kind: Name
    matrix: Text
    layers: Annotated[tuple[Size, ...], Field(min_length=1, max_length=100_000)]
    offset: Size

    @property
    def bytes(self) -> int:
        return 2 * prod(self.shape)


class Adapters(Described):
    """Adapters that are no part of the weights: the `inputs` by name that every function of the model takes, and a
    `file` by adapter that has their values one behind the other. Zeros are the model without any."""

    inputs: Annotated[dict[Name, AdapterInput], Field(min_length=1)]
    files: dict[AdapterName, FileName]

    @property
    def bytes(self) -> int:
        """Of an adapter's file, and of what a call is given."""
        return sum(each.bytes for each in self.inputs.values())

    def problems(self, sealed: Mapping[str, File]) -> Iterator[str]:
        """Everything in which it contradicts itself, or the files that are there."""
        end = 0
        for name, each in self.inputs.items():
            if each.offset != end:
                yield f"inputs.{name}: offset is {each.offset} and must be {end}"
            if len(each.layers) != each.shape[0]:
                yield f"inputs.{name}: {list(each.shape)} is not of {len(each.layers)} layers"
            end += each.bytes
        for name, file in self.files.items():
            if file not in sealed:
                yield f"files.{name}: {file!r} is not among `files`"
            elif sealed[file].bytes != end:
                yield f"files.{name}: {file} has {sealed[file].bytes} bytes and must have {end}"
