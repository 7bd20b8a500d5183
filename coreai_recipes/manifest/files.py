"""Files that somebody else wrote: where they may lie, that they are files, and how much of them is read."""

import os
import stat
from pathlib import Path

from coreai_recipes.errors import BundleError

_PIECE_BYTES = 1 << 20


def check_relative(name: str) -> str:
    """`name` when it is a plain path below a folder, written with `/`; else ValueError with what is wrong."""
    if not name or len(name) > 1024 or not name.isprintable() or "\\" in name:
        raise ValueError("is not the path of a file")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("is not a path inside the bundle")
    return name


def locate(folder: Path, name: str) -> Path:
    """The regular file `name` of `folder`. Raises BundleError when it is missing, no file, or a link leads outside."""
    path = folder / name
    _stat(path, folder)
    return path


def read_regular(path: Path, most: int, within: Path | None = None) -> bytes:
    """The bytes of a regular file of at most `most`; a pipe, a device or a socket in its place is never opened to wait.

    With `within`, a link that leads out of that folder is refused. Raises FileNotFoundError or NotADirectoryError when
    nothing is there, else BundleError.
    """
    if _stat(path, within).st_size > most:
        raise BundleError(f"{path}: is larger than {most >> 20} MiB, more than such a file can be")
    try:
        # what stood there a moment ago may be a pipe by now
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BundleError(f"{path}: is not a file")
            content = bytearray()
            while len(content) <= most and (piece := file.read(min(_PIECE_BYTES, most + 1 - len(content)))):
                content += piece
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(content) > most:
        raise BundleError(f"{path}: is larger than {most >> 20} MiB, more than such a file can be")
    return bytes(content)


def _stat(path: Path, within: Path | None) -> os.stat_result:
    try:
        found = path.stat()
        real = path.resolve() if within is not None else None
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(path):
            raise BundleError(f"{path}: is a broken link") from None
        raise
    except (OSError, RuntimeError) as error:  # a cycle of links was a RuntimeError before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else "a cycle of links"
        raise BundleError(f"{path}: cannot be read: {(reason or str(error)).lower()}") from None
    if within is not None and real is not None and not real.is_relative_to(within.resolve()):
        raise BundleError(f"{path}: is a link to a place outside the bundle")
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise BundleError(f"{path}: is {kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file")
    return found
