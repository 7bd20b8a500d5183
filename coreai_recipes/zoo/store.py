"""Where a zoo keeps what it made: a folder, or anything else that fsspec knows. What is put there is there whole."""

import errno
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from coreai_recipes.errors import UserError, describe
from coreai_recipes.manifest.staging import remove_leftovers
from coreai_recipes.zoo.extra import check_extra

# where a file that is being written can be seen: it gets its name when it is whole. All others are objects, which
# appear when their last byte is there.
SEEN_WHILE_WRITTEN = {"file", "local", "sftp", "ssh", "ftp", "hdfs", "arrow_hdfs", "smb", "webhdfs"}
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
UNFINISHED = ".unfinished"


class StoreError(UserError):
    """The store cannot be read or written. `may_mend` is whether that can pass by itself."""

    code = "store"

    def __init__(self, message: str, may_mend: bool = True) -> None:
        super().__init__(message)
        self.may_mend = may_mend

    def __reduce__(self) -> tuple[Any, ...]:  # it comes from a worker
        return StoreError, (str(self), self.may_mend)


class Store:
    """Files by name below `address`. A store is opened where it is used, and travels as its address."""

    def __init__(self, address: str) -> None:
        """Raises StoreError for an address that fsspec cannot open."""
        check_extra()
        from fsspec.core import url_to_fs

        self.address = address
        try:
            self.files, root = url_to_fs(address)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError(f"store {address}: cannot be opened: {_reason(error)}", may_mend=False) from None
        self.root = PurePosixPath(root)
        own = self.files.protocol
        protocols = {own} if isinstance(own, str) else set(own)
        self.is_local = bool(protocols & {"file", "local"})
        self._renames = bool(protocols & SEEN_WHILE_WRITTEN)

    def path(self, name: str) -> str:
        """As the file system calls it."""
        return str(self.root / name)

    def check(self) -> None:
        """Raise StoreError where nothing can be written: found out by writing."""
        self.put(f"check-{secrets.token_hex(4)}", b"", keep=False)

    def get(self, name: str) -> bytes | None:
        """The bytes of a file, None where there is none."""
        try:
            return bytes(self.files.cat_file(self.path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed("read", error) from error

    def get_json(self, name: str) -> Any:
        """The document in a file; None where there is none, or none that can be read."""
        data = self.get(name)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError:
            return None

    def put_json(self, name: str, document: Any) -> None:
        self.put(name, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())

    def put(self, name: str, data: bytes, keep: bool = True) -> None:
        """Write a file in place of what has its name, in one step."""
        self._place(name, lambda path: self.files.pipe_file(path, data), keep)

    def put_file(self, name: str, file: Path) -> None:
        """As `put`, of a file on this disk."""
        self._place(name, lambda path: self.files.put_file(str(file), path), True)

    def put_folder(self, name: str, folder: Path) -> None:
        """Every file of a folder, one by one: whoever reads them waits for what is put behind them."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put_file(f"{name}/{file.relative_to(folder).as_posix()}", file)

    def has(self, name: str) -> bool:
        try:
            return bool(self.files.exists(self.path(name)))
        except Exception as error:
            raise self._failed("read", error) from error

    def remove_leftovers(self) -> None:
        """Remove what killed builds have left in a store that is a folder."""
        if self.is_local:
            for folder in Path(self.path("bundles")).glob("*"):
                remove_leftovers(folder)

    @property
    def full(self) -> str:
        """What is said where its disk is full."""
        return f"store {self.address}: no space left on the device; free some, or name another store"

    def _place(self, name: str, write: Callable[[str], object], keep: bool) -> None:
        path = self.path(name)
        unfinished = f"{path}-{secrets.token_hex(8)}{UNFINISHED}" if self._renames else path
        try:
            self.files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
            try:
                write(unfinished)
                if not keep:
                    self.files.rm_file(unfinished)
                elif self._renames:
                    self.files.mv(unfinished, path)
            except BaseException:
                with suppress(Exception):
                    if self._renames:
                        self.files.rm_file(unfinished)
                raise
        except Exception as error:
            raise self._failed("written to", error) from error

    def _failed(self, what: str, error: Exception) -> StoreError:
        may_mend = not isinstance(error, PermissionError | NotADirectoryError | FileExistsError)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return StoreError(self.full)
        return StoreError(f"store {self.address}: cannot be {what}: {_reason(error)}", may_mend)


def _reason(error: Exception) -> str:
    """Somebody else's error in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return describe(error)
