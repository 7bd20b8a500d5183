"""What SRC means on the command line: a folder, a .gguf or .safetensors file, or a hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from coreai_recipes.checkpoint.base import Checkpoint, Unread
from coreai_recipes.checkpoint.settings import read_eos_token_ids, read_settings
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.source import data_folder

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[^\s@]+))?", re.ASCII)
EMBEDDED = "embedded:"  # a checkpoint that ships with the package, by its folder in examples/
CONFIG = "config.json"
FILE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHT_ENDINGS = (*FILE_SUFFIXES, ".safetensors.index.json")


Opener = Callable[..., Checkpoint]


def _in_sentences(opens: Opener) -> Opener:
    """What the file system refuses while a checkpoint is opened (a folder that may not be listed, a file that is none,
    a name that is too long) is as wrong with the checkpoint as what its files say."""

    @wraps(opens)
    def open_it(src: str | Path, token: str | None = None) -> Checkpoint:
        try:
            return opens(src, token)
        except OSError as error:
            file = f"{error.filename} " if error.filename and str(error.filename) != str(src) else ""
            raise CheckpointError(f"checkpoint {src}: {file}cannot be read: {error.strerror or error}") from error

    return open_it


@_in_sentences
def open_checkpoint(src: str | Path, token: str | None = None) -> Checkpoint:
    """The checkpoint at `src`: a path that exists, one that ships with the package, else a hub id ORG/NAME or
    ORG/NAME@REVISION, which is downloaded.

    Raises CheckpointError when it is neither, and with everything that is wrong with what is there.
    """
    path = find_path(src)
    if os.path.exists(path):
        return open_path(path)
    repo_id, revision = split_hub_id(src)
    from coreai_recipes.checkpoint.hub import fetch_snapshot
    from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint

    folder, commit = fetch_snapshot(repo_id, revision, token)
    return SafetensorsCheckpoint(folder, source=f"{repo_id}@{commit}")


@_in_sentences
def open_headers(src: str | Path, token: str | None = None) -> Checkpoint:
    """As `open_checkpoint`, but of a hub id only config.json and the headers are read: enough for `bind`'s checks."""
    path = find_path(src)
    if os.path.exists(path):
        return open_path(path)
    repo_id, revision = split_hub_id(src)
    from huggingface_hub import constants

    from coreai_recipes.checkpoint.hub import HubHeaders

    if constants.HF_HUB_OFFLINE:
        return open_checkpoint(src, token)
    return HubHeaders(repo_id, revision, token)


class ConfigFile(Unread):
    """A config.json without the weights that it describes, which is enough for a recipe; `tensors` is empty."""

    held = "only config.json is here"

    def __init__(self, path: Path) -> None:
        """Read it. Raises CheckpointError when it is not a JSON object."""
        self.path = path.parent
        self.source = self.path.resolve().name
        self.tensors = {}
        self.config = read_settings(path, self.place)

    def eos_token_ids(self) -> list[int]:
        return read_eos_token_ids(self.path, self.config, self.place)


@_in_sentences
def open_config(src: str | Path, token: str | None = None) -> Checkpoint:
    """As `open_headers`, but config.json alone is enough: the file, or a folder that has no weights."""
    path = find_path(src)
    if path.name == CONFIG and os.path.isfile(path):
        return ConfigFile(path)
    if os.path.isfile(path / CONFIG) and not any(file.name.endswith(WEIGHT_ENDINGS) for file in path.iterdir()):
        return ConfigFile(path / CONFIG)
    return open_headers(src, token)


def find_path(src: str | Path) -> Path:
    """The path that `src` would be; `embedded:NAME` is a folder of the package's own examples."""
    if isinstance(src, str) and src.startswith(EMBEDDED):
        path = data_folder("examples") / src.removeprefix(EMBEDDED)
        if not os.path.isdir(path):
            raise CheckpointError(f"checkpoint {src}: the package ships no such checkpoint")
        return path
    return Path(os.path.expanduser(src))  # unlike Path's own, it leaves the name of no user as it is


def split_hub_id(src: str | Path) -> tuple[str, str | None]:
    """ORG/NAME and the revision of a hub id; CheckpointError, with both readings, when `src` is no hub id either."""
    match = HUB_ID.fullmatch(str(src))
    if isinstance(src, Path) or match is None:
        raise CheckpointError(f"checkpoint {src}: no such folder or file; a hub id is ORG/NAME or ORG/NAME@REVISION")
    if match["revision"] is None and str(src).endswith(FILE_SUFFIXES):
        raise CheckpointError(f"checkpoint {src}: no such file")
    if ".." in (match["revision"] or ""):  # which git has in no name either
        raise CheckpointError(f"checkpoint {src}: {match['revision']} is not a revision")
    try:
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # noqa: F401
    except ValueError as error:  # it reads its settings as it is imported
        named = ", ".join(name for name in sorted(os.environ) if name.startswith("HF_"))
        raise CheckpointError(f"checkpoint {src}: huggingface_hub cannot take {named} as set: {error}") from error
    return match["repo"], match["revision"]


def open_path(path: Path) -> Checkpoint:
    """The checkpoint in a folder or file that exists; safetensors come first where a folder has GGUF files too."""
    if path.suffix == ".gguf" and path.is_file():
        return open_gguf(path)
    if path.is_dir():
        names = [file.name for file in path.iterdir() if file.is_file()]
        quantized = sorted(name for name in names if name.endswith(".gguf"))
        if quantized and not any(".safetensors" in name for name in names):
            if len(quantized) > 1:
                raise CheckpointError(f"checkpoint {path}: holds {len(quantized)} GGUF files; give one of them")
            return open_gguf(path / quantized[0])
    elif not path.is_file():  # a pipe would be waited for, a device read without an end
        raise CheckpointError(f"checkpoint {path}: is neither a folder nor a file")
    from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)


def open_gguf(path: Path) -> Checkpoint:
    """The GGUF file at `path`."""
    from coreai_recipes.checkpoint.gguf import GGUFCheckpoint

    return GGUFCheckpoint(path)
