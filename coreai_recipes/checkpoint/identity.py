"""Whether a checkpoint is the one that a bundle was built from: by its files, found out while they are read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coreai_recipes.checkpoint.base import Checkpoint, hash_file
from coreai_recipes.errors import CheckpointError

CONFIG = "config.json"


@dataclass(frozen=True)
class Facts:
    """What a build writes down of a checkpoint's files: their digests and sizes by name, and that of config.json.

    Sizes and config are None in what was built before they were written down. `bundle` is the folder that holds copies
    of the tokenizer's files; None for a draft, whose tokenizer is never asked.
    """

    sha256: Mapping[str, str]
    sizes: Mapping[str, int] | None = None
    config_sha256: str | None = None
    bundle: Path | None = None


def sizes_of(source: Checkpoint) -> dict[str, int]:
    """The bytes of each weight file."""
    try:
        return {name: path.stat().st_size for name, path in sorted(source.weight_files().items())}
    except OSError as error:
        raise CheckpointError(f"{source.place}: cannot be read: {error.strerror or error}") from error


def config_digest(source: Checkpoint) -> str | None:
    """sha256 of config.json; None where the weight file itself holds the config."""
    path = source.config_file()
    return None if path is None else hash_file(path, source.place)


class Identity:
    """Compares `source` with the `facts` that the bundle `built` was sealed with.

    Names, sizes, config and tokenizer are compared at once, contents in a thread beside whatever reads the weights;
    `check` raises as soon as one is known to differ, `finish` when all are.
    """

    def __init__(self, source: Checkpoint, facts: Facts, built: str) -> None:
        """Raises CheckpointError when the files alone tell that it is another checkpoint."""
        self._source, self._facts, self._built = source, facts, built
        self._pairs = self._pair_files()
        self._problem: CheckpointError | None = None
        self._compare_small()
        self._thread = threading.Thread(target=self._run, name="identity", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise CheckpointError when a file is known to differ."""
        if self._problem is not None:
            raise self._problem

    def finish(self) -> None:
        """Wait for the last file, and raise CheckpointError when one differs."""
        self._thread.join()
        self.check()

    def _pair_files(self) -> dict[str, str]:
        """The given file of each sealed one. A lone file may have been renamed: what is in it counts."""
        sealed, given = sorted(self._facts.sha256), sorted(self._source.weight_files())
        if len(sealed) == len(given) == 1:
            return dict(zip(sealed, given, strict=True))
        other = sorted(set(sealed) ^ set(given))
        if other:
            raise self._another(other[0])
        return dict(zip(sealed, given, strict=True))

    def _compare_small(self) -> None:
        if self._facts.sizes is not None:
            sizes = sizes_of(self._source)
            for sealed, given in self._pairs.items():
                if self._facts.sizes.get(sealed) != sizes[given]:
                    raise self._another(given)
        if self._facts.config_sha256 is not None and config_digest(self._source) != self._facts.config_sha256:
            raise self._another(CONFIG)
        if self._facts.bundle is not None:
            other = self._source.find_other_tokenizer(self._facts.bundle)
            if other is not None:
                raise self._another(other)

    def _run(self) -> None:
        files = self._source.weight_files()
        try:
            for sealed, given in self._pairs.items():
                if hash_file(files[given], self._source.place) != self._facts.sha256[sealed]:
                    raise self._another(given)
        except CheckpointError as error:  # handed to whoever asks
            self._problem = error

    def _another(self, file: str) -> CheckpointError:
        return CheckpointError(
            f"{self._source.place}: this is not the checkpoint that {self._built} was built from: {file}"
        )
