"""Fragments converted for a target, by way of the cache: what depends on nothing new is not converted again."""

import json
import platform
import warnings
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.jit import ScriptModule

import coreai_recipes
from coreai_recipes.export.cache import FragmentCache, fingerprint
from coreai_recipes.export.fragments import INTEGER, Fragment, Port, untouched
from coreai_recipes.export.pieces import source_files
from coreai_recipes.export.reporting import Progress

Prepared = TypeVar("Prepared")


def convert_fragments(
    fragments: Mapping[str, Fragment],
    keys: Mapping[str, str],
    prepare: Callable[[Fragment], Prepared],
    convert: Callable[[Fragment, Prepared], bytes],
    cache: FragmentCache,
    progress: Progress | None = None,
) -> tuple[dict[str, bytes], int]:
    """Every fragment converted, by name, and how many of them `convert` was asked for; `keys` are the cache's.

    All of those are prepared, as by `trace`, before the first is converted: to run a fragment takes more memory than to
    convert it, and a converter that is not there yet takes none.
    """
    kept = {name: cache.get(keys[name]) for name in fragments}
    prepared = {name: prepare(fragments[name]) for name, data in kept.items() if data is None}
    count = len(prepared)
    converted: dict[str, bytes] = {}
    for name, data in kept.items():
        if progress:
            progress("conversion", len(converted), len(fragments))
        if data is None:
            data = convert(fragments[name], prepared.pop(name))
            cache.put(keys[name], data)
        converted[name] = data
    if progress:
        progress("conversion", len(fragments), len(fragments))
    return converted, count


def trace(fragment: Fragment) -> ScriptModule:
    """The fragment run once, on zeros. Its states are as they were, and take no memory again."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of a trace, about this code and not about the user's model
        traced = torch.jit.trace(fragment.module.eval(), _example(fragment), check_trace=False)
    for name, port in fragment.states.items():
        fragment.module.get_buffer(name).data = zeros = untouched(port)
        setattr(traced, name, zeros)
    return traced


def _example(fragment: Fragment) -> tuple[Tensor, ...]:
    """Inputs to trace with. A zero-stride view stands for each weight, so that none takes memory."""

    def value(name: str, port: Port) -> Tensor:
        shape = (fragment.tables[name], *port.shape[1:]) if name in fragment.tables else port.shape
        if port.dtype == INTEGER:
            return torch.full(shape, 0 if name in ("slot", "place") else 1, dtype=torch.int32)
        return torch.zeros(()).expand(shape)

    return tuple(value(name, port) for name, port in fragment.inputs.items())


def fragment_keys(fragments: Mapping[str, Fragment], converter: str) -> dict[str, str]:
    """What each converted fragment depends on, by name; `converter` is a digest of the converter's code."""
    source = _source_digest(fragments.values(), converter)
    return {name: fingerprint(source, fragment_identity(fragment)) for name, fragment in fragments.items()}


def fragment_identity(fragment: Fragment) -> str:
    """The fragment's identity as canonical JSON, for a fingerprint."""
    return json.dumps(fragment.identity(), sort_keys=True)


def code_digest(files: Iterable[Path], *packages: str) -> str:
    """A digest of these files of ours and of the versions of these packages."""
    return fingerprint(*(sha256(path.read_bytes()).hexdigest() for path in files), *map(version, packages))


def _source_digest(fragments: Iterable[Fragment], converter: str) -> str:
    """A digest of all code that a conversion depends on: the converter's, this package's, that of other primitives."""
    root = Path(coreai_recipes.__file__).parent
    own = {
        *(root / "decoder").rglob("*.py"),
        *(root / "primitives").glob("*.py"),
        *(root / "recipe/schema").glob("*.py"),
        *(root / "hosts").glob("*.py"),
        root / "export/fragments.py",
        root / "export/open_sizes.py",
        *(root / "export").glob("*_fragments.py"),
        *(root / "export").glob("*_program.py"),  # which have pieces of their own
        root / "storage/parameters.py",
        root / "storage/row_blocks.py",
    }
    others = set().union(*(source_files(fragment.module) for fragment in fragments))
    return fingerprint(converter, code_digest(sorted(own | others), "torch"), platform.python_version())
