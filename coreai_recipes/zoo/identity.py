"""What a cell depends on: its recipe, its checkpoint, versions and code. Cells of one key give the same bytes."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coreai_recipes
from coreai_recipes.bundle.adapting import open_unmerged, origins_of
from coreai_recipes.bundle.sources import find_sources
from coreai_recipes.lint.devices import find_device
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.schema import DRAFT, MODEL
from coreai_recipes.zoo.cells import Cell
from coreai_recipes.zoo.schema import RANDOM
from coreai_recipes.zoo.store import Store

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.base import Checkpoint

PACKAGES = (
    *("coreai-recipes", "torch", "coremltools", "transformers", "numpy", "tokenizers", "safetensors", "gguf"),
    *("coreai-core", "coreai-torch"),
)
CLUSTER = ("dask", "distributed")  # of which no bytes depend, but workers and a client must agree on them
NO_MATTER = ("commands", "report", "generate", "serving", "audit", "terminal", "zoo")  # rooms that no bundle depends on

Identity = dict[str, Any]


@cache
def versions() -> dict[str, str]:
    """Of Python, of all packages that a bundle or its proof depends on and that are here, and of our own code."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "code of coreai-recipes": _code()}


def cluster_versions() -> dict[str, str]:
    """As `versions`, with those that a worker and its client must share beside."""
    return {**versions(), **{name: version(name) for name in CLUSTER}}


def _code() -> str:
    root = Path(coreai_recipes.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):  # its data too: tables, texts
        name = path.relative_to(root)
        if name.parts[0] not in NO_MATTER and "__pycache__" not in name.parts:
            digest.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def key_of(cell: Cell, recipe_text: str, checkpoint: Identity, found: Mapping[str, str]) -> str:
    """The name of a cell's results: a digest of all that decides about them."""
    said = {
        "recipe": recipe_text,
        "bits": cell.build_bits,
        "device": None if cell.device is None else find_device(cell.device).id,
        "checkpoint": checkpoint,
        "versions": dict(found),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def identify(recipe: Recipe, checkpoint: str | None, store: Store, known_only: bool = False) -> Identity | None:
    """What the checkpoints of a recipe's stacks are, by the digests of their files. A file is read once: while its
    size and time are the same, the store knows its digest.

    With `known_only` None is returned where a file would have to be read. Raises CheckpointError where one cannot be.
    """
    if checkpoint == RANDOM:
        return {MODEL: RANDOM}
    _, sources = find_sources(recipe, {MODEL: checkpoint, DRAFT: None})
    source = sources[MODEL]
    found = _identities(sources, store, known_only)
    adapters = origins_of(recipe, source, open_unmerged(recipe, source))
    return found if found is None or adapters is None else {**found, "adapters": adapters}


def _identities(sources: "Mapping[str, Checkpoint]", store: Store, known_only: bool) -> Identity | None:
    found: Identity = {}
    for key, source in sources.items():
        name = f"checkpoints/{_fingerprint(source)}.json"
        known = store.get_json(name)
        if known is None:
            if known_only:
                return None
            known = {"source": source.source, "files": {**source.digests(), **dict(_others(source))}}
            store.put_json(name, known)
        found[key] = known
    return found


def _others(source: "Checkpoint") -> Iterator[tuple[str, str]]:
    """The files beside the weights, with their digests: config, tokenizer, templates."""
    weights = set(source.weight_files())
    folder = source.folder()
    for path in _files(folder):
        name = path.relative_to(folder or path).as_posix()
        if name not in weights:
            with path.open("rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path | None) -> list[Path]:
    """What may be read of a checkpoint's folder."""
    if folder is None:
        return []
    patterns = ("*.json", "*.jinja", "*/*.jinja", "*.txt", "*.model", "*.safetensors")
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _fingerprint(source: "Checkpoint") -> str:
    """A digest of the files' places, sizes and times."""
    digest = hashlib.sha256(source.source.encode())
    for path in sorted({*source.weight_files().values(), *_files(source.folder())}):
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
