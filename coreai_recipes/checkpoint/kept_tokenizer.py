"""The tokenizer's way into a bundle, once for the same files: transformers takes a second to be imported."""

import json
import shutil
from collections.abc import Iterator
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


def write_tokenizer(source: Checkpoint, folder: Path, cache: Cache) -> None:
    """`source.write_tokenizer` into the empty `folder`, or what it wrote from the same files with the same versions.

    A failure is not kept. Verification asks transformers anew, and compares.
    """
    beside = source.folder()
    key = None if beside is None else _key(source, beside)
    if beside is None or key is None:
        source.write_tokenizer(folder)
        return
    data = cache.get(key)
    if data is None:
        source.write_tokenizer(folder)
        cache.put(key, json.dumps(dict(_made(folder, beside))).encode())
        return
    for name, text in json.loads(data).items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if text is None:
            shutil.copyfile(beside / name, target)
        else:
            target.write_bytes(text.encode())


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
