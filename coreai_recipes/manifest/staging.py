"""A bundle's folder, written beside its place and exchanged with the old one in one step.

Everything that is not the bundle itself is hidden and lies beside it, for a bundle NAME:

    .NAME.lock                  held by the process that builds NAME, and holding its pid
    .NAME.building-PID-RANDOM   NAME, as it is being written (after an exchange: the old bundle, until it is removed),
                                and tmp, where everything that takes part in the build keeps its temporary files
    .NAME.previous              the old bundle, between the two renames of a file system that has no exchange

What is at any of these names and was not made by a build is the user's: it is never moved, written to or removed.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.manifest.contents import is_bundle, why_kept

TEMPORARY = "tmp"

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target`; when the block ends well it is at `target`, whole, in one step.

    Until that step, and after any exception, `target` is as it was. A process killed at any moment leaves the old
    bundle or the new one, and hidden leftovers that the next build of the same name removes. Temporary files of the
    block lie there too, so that a full disk is always the disk of `target`.

    Raises BundleError, before the block begins, as `check_place`, when another process builds it, or when it cannot be
    written to; and for a full disk inside the block.
    """
    place = _Place(target)
    place.check()  # before a folder is made for the lock
    with place.locked():
        area = place.prepare()
        staging = area / place.path.name
        try:
            try:
                with _temporary_files_in(area / TEMPORARY):
                    yield staging
            except OSError as error:
                if error.errno in _NO_SPACE or _lies_in(error.filename, area):
                    raise place.cannot_write(error) from error
                raise
            place.install(staging)
        finally:
            # What cannot be removed is hidden, and the next build tries again.
            shutil.rmtree(area, ignore_errors=True)


def check_place(target: Path) -> None:
    """Raise BundleError when `target` must not be replaced: it is no bundle, holds more than one, or lies in one."""
    _Place(target).check()


def recover(target: Path) -> None:
    """Undo an exchange that was killed between its two renames; one lstat when there was none.

    Every command calls it before it opens a bundle. Raises BundleError when the old bundle cannot be put back.
    """
    place = _Place(target)
    while place.is_half_exchanged():
        try:
            with place.locked():
                place.put_previous_back()
        except BeingBuilt:
            time.sleep(0.01)  # a live builder is between its two renames: neither bundle has the name for a moment


def remove_leftovers(folder: Path) -> None:
    """Remove what killed builds have left in a folder, of every name; what is being built there stays."""
    for lock in folder.glob(".*.lock"):
        place = _Place(folder / lock.name.removeprefix(".").removesuffix(".lock"))
        with suppress(BundleError), place.locked():
            place.clear()


class NoSpace(BundleError):
    """The disk is full, or would be."""


class BeingBuilt(BundleError):
    """Another process holds the lock."""


class _Place:
    """Where one bundle lies, and the hidden names beside it. `asked` is the path as the user wrote it."""

    def __init__(self, asked: Path) -> None:
        self.asked = asked
        self.path = Path(os.path.realpath(asked))  # through a symbolic link: the folder is exchanged, not the link
        self.parent = self.path.parent
        self.lock = self.parent / f".{self.path.name}.lock"
        self.previous = self.parent / f".{self.path.name}.previous"

    # The lock

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, or raise at once; the file is removed on the way out, while it is still held."""
        with self._explained():
            self.parent.mkdir(parents=True, exist_ok=True)
            lock = self._acquire()
        try:
            yield
        finally:
            with suppress(OSError):  # a small hidden file may stay; the next build takes it over
                if _is_same_file(lock, self.lock):
                    self.lock.unlink()
            os.close(lock)

    def _acquire(self) -> int:
        while True:
            lock = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_same_file(lock, self.lock):
                    self._refuse_other_lock(lock)
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, str(os.getpid()).encode(), 0)
                    return lock
            except BlockingIOError:
                pid = os.pread(lock, 32, 0).decode(errors="replace")
                os.close(lock)
                builder = f"process {pid}" if pid else "another process"
                message = f"{self.asked} is being built by {builder}; wait for it, or choose another --out"
                raise BeingBuilt(message) from None
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)  # its last holder removed the name between our open and our lock

    def _refuse_other_lock(self, lock: int) -> None:
        """A file of the user's that has the lock's name is not written over, and not removed on the way out."""
        found = os.fstat(lock)
        if not stat.S_ISREG(found.st_mode) or not re.fullmatch(rb"[0-9]{0,20}", os.pread(lock, 32, 0)):
            raise BundleError(
                f"{self.lock} is in the way and was not written by a build; move it, or choose another --out"
            )

    # Before the block

    def check(self) -> None:
        """Raise BundleError when something is at the place, or around it, that a build must not touch."""
        with self._explained():
            if os.path.isdir(self.path):
                reason = why_kept(self.path)
                if reason is not None:
                    raise BundleError(f"{self.asked} {reason}; choose another --out")
            elif os.path.lexists(self.path):
                raise BundleError(f"{self.asked} is a file, not a bundle; choose another --out")
            around = next((folder for folder in self.path.parents if is_bundle(folder)), None)
            if around is not None:
                raise BundleError(f"{self.asked} would lie inside the bundle {around}; choose another --out")

    def prepare(self) -> Path:
        """Clear what dead processes left, refuse what is not ours to replace, and make the empty folder's area."""
        with self._explained():
            self.put_previous_back()
            self.check()
            if is_bundle(self.previous):  # renamed before it is removed: half of it must never be put back
                os.rename(self.previous, self._new_area() / self.path.name)
            self.clear()
            area = self._new_area()
            (area / self.path.name).mkdir()
            return area

    def clear(self) -> None:
        """Remove what dead processes were building; the lock is held."""
        leftover = re.compile(rf"\.{re.escape(self.path.name)}\.building-\d+-[0-9a-f]{{8}}")
        for entry in list(os.scandir(self.parent)):
            if leftover.fullmatch(entry.name) and self._is_area(entry):
                shutil.rmtree(entry.path, ignore_errors=True)

    def _new_area(self) -> Path:
        area = self.parent / f".{self.path.name}.building-{os.getpid()}-{secrets.token_hex(4)}"
        area.mkdir()
        return area

    def _is_area(self, entry: os.DirEntry[str]) -> bool:
        """Whether a build made the folder: then nothing is in it but what is being built and temporary files."""
        if not entry.is_dir(follow_symlinks=False):
            return False
        with suppress(OSError), os.scandir(entry.path) as found:
            return all(
                each.name in (self.path.name, TEMPORARY) and each.is_dir(follow_symlinks=False) for each in found
            )
        return False

    # The exchange

    def install(self, staging: Path) -> None:
        """Bring `staging` to disk and to its place; afterwards `staging`, if it exists, is the old bundle."""
        with self._explained():
            _sync_tree(staging)
            _sync(self.parent)
            self.check()  # a build is long enough for something else to have come
            if os.path.isdir(self.path) and os.listdir(self.path):
                self._replace(staging)
            else:
                os.rename(staging, self.path)  # onto nothing or an empty folder: the system refuses everything else
            _sync(self.parent)

    def _replace(self, staging: Path) -> None:
        try:
            _exchange(staging, self.path)
        except OSError as error:
            if error.errno not in _CANNOT_EXCHANGE:
                raise
            self._rename_twice(staging)
            return
        reason = why_kept(staging)
        if reason is not None:  # it came between the check and the exchange
            _exchange(staging, self.path)
            raise BundleError(f"{self.asked} {reason}; choose another --out")

    def _rename_twice(self, staging: Path) -> None:
        """The exchange where the file system has none. The name `.NAME.previous` is the journal.

        While it exists and NAME does not, the exchange is half done and `recover` undoes it. Once NAME exists again
        the exchange is done and `.NAME.previous` is only in the way.
        """
        if os.path.lexists(self.previous):
            raise _in_the_way(self.previous)
        try:
            os.rename(self.path, self.previous)
            reason = why_kept(self.previous)
            if reason is not None:  # it came between the check and the rename
                raise BundleError(f"{self.asked} {reason}; choose another --out")
            _sync(self.parent)
            os.rename(staging, self.path)
            _sync(self.parent)
            os.rename(self.previous, staging)
        finally:
            if os.path.lexists(self.previous) and not os.path.lexists(self.path):
                os.rename(self.previous, self.path)
                _sync(self.parent)

    def is_half_exchanged(self) -> bool:
        return os.path.lexists(self.previous) and not os.path.lexists(self.path) and is_bundle(self.previous)

    def put_previous_back(self) -> None:
        if self.is_half_exchanged():
            with self._explained():
                os.rename(self.previous, self.path)
                _sync(self.parent)

    # What the user reads

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.cannot_write(error) from error

    def cannot_write(self, error: OSError) -> BundleError:
        """The sentence for `error`, with the user's own path first."""
        if error.errno in _NO_SPACE:
            return NoSpace(f"{self.asked}: no space left on the device; free some, or choose another --out")
        if error.errno == errno.ENAMETOOLONG:
            return BundleError(f"{self.asked}: the name is too long for this file system; choose a shorter one")
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            return BundleError(f"{self.asked}: {self.asked.parent} is not a folder; choose another --out")
        reason = (error.strerror or str(error)).lower()
        return BundleError(f"{self.asked}: {self.asked.parent} cannot be written to ({reason}); choose another --out")


def _in_the_way(path: Path) -> BundleError:
    return BundleError(f"{path} is in the way and was not written by a build; move it, or choose another --out")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder for the block, which is removed after it. Raises UserError where there is no room for one."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        if tempfile.tempdir in _in_areas or not (error.errno in _NO_SPACE or "temporary directory" in str(error)):
            raise  # of a build's own place, which says so itself; or not about this folder
        place = tempfile.tempdir or os.environ.get("TMPDIR", "the system's folder")
        raise UserError(f"{place}: no space for temporary files; free some, or set TMPDIR to another folder") from error


_in_areas: set[str] = set()  # where the temporary files of running builds lie


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let `tempfile`, which coremltools and others use, write below `folder`: it goes when the area goes."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    _in_areas.add(str(folder))
    try:
        yield
    finally:
        _in_areas.discard(str(folder))
        if tempfile.tempdir == str(folder):
            # another build of this process may have ended since, and its folder with it
            tempfile.tempdir = before if before is None or os.path.isdir(before) else None


def _exchange(one: Path, other: Path) -> None:
    """Let two paths of one file system change places in one step.

    Raises OSError with ENOSYS where the system has no such call, EINVAL or ENOTSUP where the file system has not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            rename_swap = 2  # <sys/stdio.h> RENAME_SWAP
            failed = libc.renamex_np(first, second, ctypes.c_uint(rename_swap))
        else:
            here, rename_exchange = -100, 2  # <fcntl.h> AT_FDCWD, <linux/fs.h> RENAME_EXCHANGE
            failed = libc.renameat2(here, first, here, second, ctypes.c_uint(rename_exchange))
    except AttributeError:  # an older libc
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one)) from None
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def _sync_tree(folder: Path) -> None:
    """Bring every file and folder to disk, the folders after what is in them."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(path, name)
            if not file.is_symlink():
                _sync(file)
        _sync(Path(path))


def _sync(path: Path) -> None:
    """fsync; on macOS through the drive's own cache too, where the file system offers it."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            except OSError as error:
                if error.errno in _NO_SPACE:
                    raise
            else:
                return
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _lies_in(name: object, folder: Path) -> bool:
    return isinstance(name, str | os.PathLike) and Path(os.path.abspath(name)).is_relative_to(folder)
