"""What lies in a bundle's folder, beside what its build wrote. Nothing here follows a link."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from coreai_recipes.errors import BundleError
from coreai_recipes.manifest.reading import MANIFEST, REPORT, read_sealed
from coreai_recipes.manifest.schema import Sealed

DEVICE = "device"  # the folder of device reports, which are added to a finished bundle
MOST_NAMED = 5


def is_bundle(folder: Path) -> bool:
    """Whether a build of ours wrote the folder, of whatever format so far; other things may be in it too."""
    try:
        read_sealed(folder)
    except (BundleError, OSError):
        return False
    return True


def foreign_entries(folder: Path, sealed: Sealed) -> Iterator[str]:
    """Every entry of `folder` that neither its build nor the system's file browser wrote: files, links, folders."""
    expected = {*sealed.files, MANIFEST, REPORT}
    folders = {parent for name in expected for parent in _parents(name)} | {DEVICE}
    pending = [""]
    while pending:
        below = pending.pop()
        with _opened(folder / below) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{below}/{entry.name}" if below else entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode) and name in folders:
                    pending.append(name)
                elif not (stat.S_ISREG(mode) and (name in expected or _may_be_added(below, entry.name))):
                    yield name


def why_kept(folder: Path) -> str | None:
    """Why the folder must not be replaced by a bundle, as the end of a sentence; None when it is one and no more."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    if not names:
        return None
    if MANIFEST not in names:
        return f"is a folder without {MANIFEST}, not a bundle"
    try:
        sealed = read_sealed(folder)
    except (BundleError, FileNotFoundError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{folder}: ").removeprefix(f"{MANIFEST} ")
        return f"is not a bundle that a build wrote, so it is kept (it holds {_listed(names)}; its {MANIFEST} {reason})"
    foreign = list(foreign_entries(folder, sealed))
    return f"is kept, because it holds files that no build wrote: {_listed(foreign)}" if foreign else None


def _opened(folder: Path) -> "os._ScandirIterator[str]":
    try:
        return os.scandir(folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _may_be_added(below: str, name: str) -> bool:
    return name == ".DS_Store" or (below == DEVICE and name.endswith(".json"))


def _listed(names: list[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names[:MOST_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
