"""What of a checkpoint is in no package's weights: raw tables beside it, and whole numbers in the program."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coreai_recipes.decoder.model import table_file
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.streaming import Encoded, FileStream, write_table
from coreai_recipes.storage.base import Shape, Storage
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.parameters import raw_tables
from coreai_recipes.storage.reading import given_back
from coreai_recipes.weights.binding import Binding


def table_streams(
    stacks: Sequence[StackModule],
    bindings: Mapping[str, Binding],
    package: Path,
    encode: Callable[[str, Storage, Shape], Iterator[Encoded]],
) -> Iterator[FileStream]:
    """The tables of `stacks` whose rows a host looks up, on their way into files beside `package`."""
    compression = Compression.of(stacks[0].recipe)
    for name, shape in raw_tables(stacks).shapes.items():
        storage, path = compression.row_storage(name, shape), package.parent / table_file(name)
        if storage == compression.storage(name, shape):
            values = encode(name, storage, shape)
        else:  # rows of float16, as a program would have them
            found = given_back(stacks, name, bindings[name], package)
            values = storage.encode(found.blocks(), shape, bindings[name].tensor)
        size = storage.bytes(shape)
        yield FileStream(path, size, write_table(path, name, size, values))


def read_whole_numbers(stacks: Sequence[StackModule], bindings: Mapping[str, Binding]) -> dict[str, NDArray[np.int32]]:
    """By their names in a package, the parameters that are no weights: they stand in the program itself."""
    found = {}
    for stack in stacks:
        for name in stack.whole_numbers:
            numbers = bindings[stack.of.prefix + name].read().to(torch.int32)
            found[stack.of.prefix + name] = np.asarray(numbers.view(stack.get_parameter(name).shape).numpy())
    return found
