"""Converted fragments kept on disk between builds. A leaf: it imports nothing of ours.

An entry is bytes under a key that says everything they depend on (`fingerprint`). The cache is only ever a saving: what
is torn, foreign or unreadable counts as absent, and a cache that cannot be written to never fails a build.
"""

import hashlib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

MAX_BYTES = 256 << 20
MAX_ENTRIES = 2000

_SUFFIX = ".fragment"
_UNFINISHED = ".unfinished"
_DIGEST_BYTES = 32
_ABANDONED_AFTER_SECONDS = 3600
# only what bears these names is ever removed: the folder may be one of the user's, who chose it
_ENTRY = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_ABANDONED = re.compile(rf"[0-9a-f]{{64}}-\w+{re.escape(_UNFINISHED)}")


def fingerprint(*parts: bytes | str) -> str:
    """sha256 of the parts, each after its length: ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def default_root() -> Path | None:
    """`$RECIPE_CACHE/fragments`, or `coreai-recipes/fragments` in the user's cache folder; None where there is none."""
    if chosen := os.environ.get("RECIPE_CACHE"):
        return Path(chosen) / "fragments"
    try:
        user_caches = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    except RuntimeError:  # a user without a home
        return None
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # the XDG specification: a relative path is to be ignored
        user_caches = xdg
    return user_caches / "coreai-recipes" / "fragments"


class FragmentCache:
    """Bytes by key in one folder; `root` None keeps nothing (`--no-cache`).

    Several builds may share a folder: entries are replaced whole, and each begins with a digest of its key and bytes.
    """

    def __init__(self, root: Path | None, *, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self._has_warned = False

    def get_or_make(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The entry, or what `make` returns, which is then kept."""
        data = self.get(key)
        if data is None:
            data = make()
            self.put(key, data)
        return data

    def get(self, key: str) -> bytes | None:
        """The bytes that were put under `key`, or None when they are absent or not whole."""
        if self.root is None:
            return None
        path = self._path(self.root, key)
        try:
            entry = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        data = unsealed(key, entry)
        if data is None:
            return None
        with suppress(OSError):  # the entry is as good without a new time
            os.utime(path)  # pruning removes what was not used for longest
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep `data` under `key`, in place of what was there; where that fails, warn once and go on."""
        if self.root is None:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(_UNFINISHED, f"{fingerprint(key)}-", self.root)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(sealed(key, data))
                os.replace(unfinished, self._path(self.root, key))
            except BaseException:
                with suppress(OSError):
                    os.unlink(unfinished)
                raise
            self._prune(self.root)
        except OSError as error:
            self._warn(error)

    def _path(self, root: Path, key: str) -> Path:
        return root / (fingerprint(key) + _SUFFIX)

    def _prune(self, root: Path) -> None:
        """Remove the entries used longest ago until both bounds hold, and files that killed builds left unfinished."""
        entries: list[tuple[float, int, str]] = []
        abandoned = time.time() - _ABANDONED_AFTER_SECONDS
        with os.scandir(root) as files:
            for file in files:
                with suppress(FileNotFoundError):  # another build prunes too
                    status = file.stat(follow_symlinks=False)
                    if _ENTRY.fullmatch(file.name):
                        entries.append((status.st_mtime, status.st_size, file.path))
                    elif _ABANDONED.fullmatch(file.name) and status.st_mtime < abandoned:
                        os.unlink(file.path)
        total = sum(size for _, size, _ in entries)
        count = len(entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes and count <= self.max_entries:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
            count -= 1

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            reason = error.strerror or error
            log.warning(
                "the fragment cache %s cannot be used (%s): builds take longer, nothing else", self.root, reason
            )


def sealed(key: str, data: bytes) -> bytes:
    """An entry as it is kept: a digest of its key and bytes, and the bytes."""
    return bytes.fromhex(fingerprint(key, data)) + data


def unsealed(key: str, entry: bytes) -> bytes | None:
    """The bytes of an entry, None where it is not whole or not that of `key`."""
    data = entry[_DIGEST_BYTES:]
    return data if entry == sealed(key, data) else None


def held_files(root: Path | None) -> dict[Path, int]:
    """The entries of the cache in that folder, with their bytes; none where there is no such folder."""
    found: dict[Path, int] = {}
    with suppress(OSError), os.scandir(root or ""):
        for path in sorted(Path(root or "").iterdir()):
            if _ENTRY.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another build prunes
                    found[path] = path.stat(follow_symlinks=False).st_size
    return found
