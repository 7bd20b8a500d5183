"""The tokenizer's way into a bundle, once for the same files: transformers takes a second to be imported."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import coreai_recipes
from coreai_recipes.checkpoint.base import Checkpoint

# what transformers makes of the files depends on these, and on whether they are there
PACKAGES = ("transformers", "tokenizers", "sentencepiece", "tiktoken", "protobuf", "mistral-common")
CODE = ("checkpoint/auto_tokenizer.py", "checkpoint/older_vocabularies.py", "checkpoint/tokenizer_files.py")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".pickle", ".pkl")
MOST_BYTES = 256 << 20  # of all files that are not weights: a tokenizer.json has up to 35 MB


class Cache(Protocol):
    """Bytes by key, of which any may be gone."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...


class KeptTokenizer:
    """What `source.write_tokenizer` writes, or what it wrote from the same files with the same versions.

    A failure is not kept. Verification asks transformers anew, and compares.
    """

    def __init__(self, source: Checkpoint, cache: Cache) -> None:
        self.source, self.cache = source, cache
        self._beside = source.folder()
        self._key = None if self._beside is None else _key(source, self._beside)
        self._data = None if self._key is None else cache.get(self._key)
        self._asked: Future[bytes | None] | None = None

    def ask_ahead(self) -> None:
        """Let a process of its own ask transformers, where nothing is kept: the import of torch, which transformers is
        spared there, takes as long. A process that fails has no say."""
        asking = None if self._key is None or self._data is not None else self.source.asking_tokenizer()
        if asking is not None:
            self._asked = Future()
            threading.Thread(target=_ask, args=(asking, self._asked), name="tokenizer", daemon=True).start()

    def write(self, folder: Path) -> None:
        """Into the empty `folder`."""
        if self._beside is None or self._key is None:
            self.source.write_tokenizer(folder)
            return
        if self._data is None and self._asked is not None:
            self._data = self._asked.result()
            if self._data is not None:
                self.cache.put(self._key, self._data)
        if self._data is None:
            self.source.write_tokenizer(folder)
            self.cache.put(self._key, pack(folder, self._beside))
            return
        for name, text in json.loads(self._data).items():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            if text is None:
                shutil.copyfile(self._beside / name, target)
            else:
                target.write_bytes(text.encode())


def pack(folder: Path, beside: Path) -> bytes:
    """The files of a folder as JSON; those that are copies of the checkpoint's own by their names alone."""
    return json.dumps(dict(_made(folder, beside))).encode()


def _ask(command: Sequence[str], answer: Future[bytes | None]) -> None:
    """What the command prints, None where it fails."""
    try:
        run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        answer.set_result(run.stdout if run.returncode == 0 else None)
    except OSError:
        answer.set_result(None)


def _key(source: Checkpoint, beside: Path) -> str | None:
    """A digest of all that decides: every file but the weights, versions, our own code. None for too many bytes."""
    digest, left = sha256(), MOST_BYTES
    for path in sorted((*beside.glob("*"), *beside.glob("*/*.jinja"))):
        if path.is_file() and path.suffix not in WEIGHTS:
            left -= path.stat().st_size
            if left < 0:
                return None
            digest.update(f"{path.relative_to(beside)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    root = Path(coreai_recipes.__file__).parent
    for path in (*(root / name for name in CODE), *sorted((root / "tokenizer").glob("*.py"))):
        digest.update(sha256(path.read_bytes()).digest())
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)}\n".encode())
    digest.update(source.source.encode())
    return f"tokenizer {digest.hexdigest()}"


def _made(folder: Path, beside: Path) -> Iterator[tuple[str, str | None]]:
    """Each file by its name; None stands for a copy of the checkpoint's own."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = path.relative_to(folder), path.read_bytes()
        own = beside / name
        yield name.as_posix(), None if own.is_file() and own.read_bytes() == data else data.decode()
