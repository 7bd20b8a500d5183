"""Fragments converted for a target, by way of the cache: what depends on nothing new is not converted again."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import coreai_recipes
from coreai_recipes.export.cache import FragmentCache, fingerprint
from coreai_recipes.export.fragments import Fragment, source_files
from coreai_recipes.export.reporting import Progress


def convert_fragments(
    fragments: Mapping[str, Fragment],
    keys: Mapping[str, str],
    convert: Callable[[Fragment], bytes],
    cache: FragmentCache,
    progress: Progress | None = None,
) -> tuple[dict[str, bytes], int]:
    """Every fragment converted, by name, and how many of them `convert` was asked for; `keys` are the cache's."""
    made: list[str] = []

    def make(fragment: Fragment) -> bytes:
        made.append(fragment.name)
        return convert(fragment)

    converted: dict[str, bytes] = {}
    for name, fragment in fragments.items():
        if progress:
            progress("conversion", len(converted), len(fragments))
        converted[name] = cache.get_or_make(keys[name], partial(make, fragment))
    if progress:
        progress("conversion", len(fragments), len(fragments))
    return converted, len(made)


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
        root / "hosts/logits.py",
        root / "export/fragments.py",
        root / "export/draft_fragments.py",
        root / "storage/parameters.py",
    }
    others = set().union(*(source_files(fragment.module) for fragment in fragments))
    return fingerprint(converter, code_digest(sorted(own | others), "torch"), platform.python_version())
