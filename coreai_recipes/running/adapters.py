"""The values of a bundle's adapters, which its functions take as inputs."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest.files import read_regular
from coreai_recipes.manifest.reading import file_of_adapter

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.manifest.schema import Manifest


def check_adapter(place: str, manifest: "Manifest", name: str | None) -> None:
    """Raise UserError for an adapter that the bundle at `place` does not have."""
    if name is None:
        return
    there = () if manifest.adapters is None else tuple(manifest.adapters.files)
    if name in there:
        return
    merged = [each.name for each in manifest.checkpoint.adapters or () if each.name not in there]
    if name in merged:
        raise UserError(f"--adapter {name}: it is merged into the weights of {place}: leave out --adapter")
    said = f"it has {', '.join(there)}" if there else "it has none; a recipe with `merge: false` keeps them apart"
    raise UserError(f"--adapter {name}: {place} has no such adapter: {said}")


def inputs_of(folder: Path, manifest: "Manifest", name: str | None) -> "dict[str, Tensor]":
    """What every function of the model in `folder` is given of the adapter `name`, or of none. Raises BundleError."""
    adapters = manifest.adapters
    if adapters is None:
        return {}
    file = None if name is None else folder / adapters.files[name]
    return read_inputs(file, {port: each.shape for port, each in adapters.inputs.items()})


def inputs_beside(package: Path, shapes: "Mapping[str, tuple[int, ...]]", name: str | None) -> "dict[str, Tensor]":
    """As `inputs_of`, beside a package whose inputs have these shapes by name."""
    return read_inputs(None if name is None else package.parent / file_of_adapter(name), shapes)


def read_inputs(file: Path | None, shapes: "Mapping[str, tuple[int, ...]]") -> "dict[str, Tensor]":
    """The float16 values of a file, one behind the other, as float32 inputs by name; zeros where there is no file.

    Raises BundleError for one that is not there, or not as long as they are.
    """
    import numpy as np
    import torch

    if file is None:
        return {port: torch.zeros(shape) for port, shape in shapes.items()}
    needed = 2 * sum(map(prod, shapes.values()))
    try:
        data = read_regular(file, needed, file.parent)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{file}: missing since it was built") from None
    if len(data) != needed:
        raise BundleError(f"{file}: has {len(data)} bytes and must have {needed}")
    values, at, found = np.frombuffer(data, np.float16).astype(np.float32), 0, dict[str, torch.Tensor]()
    for port, shape in shapes.items():
        found[port] = torch.from_numpy(values[at : at + prod(shape)].reshape(shape))
        at += prod(shape)
    return found
