"""What every source of weights offers, whatever its format. Of ours it imports only the errors."""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from coreai_recipes.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

HASH_BLOCK_BYTES = 2 << 20
TIE_FLAG = "tie_word_embeddings"
# Wholes whose text part's word for a tied head counts beside theirs: `either_ties` in their family files.
EITHER_TIES = ("llava", "llava_next_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "video_llama_3")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header declares it: `dtype` in the format's own word (BF16, F16, F32, Q4_K ...)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str


@dataclass(frozen=True)
class Grid:
    """Whole numbers of `bits` times scales that float16 holds: how a tensor is stored, before it is made floats.

    `block` numbers that follow one another share a scale, along the last axis, or along the one before it where the
    tensor is presented `transposed`; without `symmetric` a scale has an offset of as many bits.
    """

    bits: int
    block: int
    symmetric: bool = True
    transposed: bool = False


class Checkpoint(ABC):
    """A source of weights under transformers' tensor names, its headers parsed once.

    Attributes:
        source: what a manifest states: the hub id with its commit, or the base name of the folder or file.
        path: the folder or file on disk; never written into anything sealed.
        tensors: every tensor of the checkpoint by name.
        config: config.json, or what a GGUF's metadata says in the same words.
    """

    source: str
    path: Path
    tensors: Mapping[str, TensorInfo]
    config: dict[str, Any]

    @abstractmethod
    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        """Consecutive blocks of `name` along its first axis (only `rows` when given), in a float dtype.

        A block is valid until the next one is asked for: all of them share one reused buffer of a few MiB.
        Raises CheckpointError when the file has changed or ends early.
        """

    def weight_files(self) -> Mapping[str, Path]:
        """Each weight file by its name relative to the checkpoint; none where the weights lie in no file."""
        return {}

    def config_file(self) -> Path | None:
        """config.json, where the config lies in a file of its own."""
        return None

    def folder(self) -> Path | None:
        """The folder of a checkpoint that consists of files; what lies there beside the weights is its tokenizer's."""
        return None

    def digests(self) -> dict[str, str]:
        """sha256 of each weight file, by its name relative to the checkpoint."""
        return {name: hash_file(path, self.place) for name, path in sorted(self.weight_files().items())}

    @abstractmethod
    def eos_token_ids(self) -> list[int]:
        """The ids that end an answer, from generation_config.json, config.json or the metadata, in that order."""

    @abstractmethod
    def write_tokenizer(self, folder: Path) -> None:
        """Put tokenizer.json, tokenizer_config.json, generation_config.json, the chat template and tokens.json, which
        holds what transformers knows beyond them, into `folder`."""

    def asking_tokenizer(self) -> Sequence[str] | None:
        """The command that asks transformers for the tokenizer and prints what `write_tokenizer` would write.

        None where transformers is not asked, or has been imported here.
        """
        return None

    def check_tokenizer(self, rows: int) -> None:
        """Raise CheckpointError for a tokenizer of which nothing can be made, or whose ids are beyond the table's
        `rows`. Nothing is converted or written, and transformers is not asked; nor is there anything to check here.
        """
        return

    def find_other_tokenizer(self, sealed: Path) -> str | None:
        """The first tokenizer file that says something else than its copy in the bundle `sealed`; none where the weight
        files hold the tokenizer."""
        return None

    def load_tokenizer(self) -> Any:
        """transformers' own tokenizer of the checkpoint, or a NotLoaded that says why there is none."""
        from coreai_recipes.checkpoint.auto_tokenizer import NotLoaded

        return NotLoaded(f"{self.source}: transformers cannot read a tokenizer from it")

    def is_comparable(self, text: str) -> bool:
        """Whether `load_tokenizer`'s reading of `text` is one to be held to: of a GGUF, transformers reads less than is
        there."""
        return True

    @property
    def says_untied(self) -> bool:
        """Whether the config says that the head is not the table; a format may have no words for it."""
        return stated_flag(self.config) is False

    @property
    def packing(self) -> str | None:
        """What the weights are dequantised from while they are read, None where they are stored as they are."""
        return None

    @property
    def place(self) -> str:
        """How every error about this checkpoint begins."""
        return f"checkpoint {self.path}"

    def grid(self, name: str) -> Grid | None:
        """The grid that every number of a tensor lies on, None where there is none: only scales are read."""
        return None

    def why_unreadable(self, name: str) -> str | None:
        """The end of a sentence that says why `blocks` cannot give `name` as floats, known from its header alone."""
        return None

    def read(self, name: str, rows: range | None = None) -> Tensor:
        """The whole tensor (or `rows` of it) as a copy of its own, in the dtype that `blocks` gives."""
        import torch

        shape = self.tensors[name].shape if rows is None else (len(rows), *self.tensors[name].shape[1:])
        whole: Tensor | None = None
        row = 0
        for block in self.blocks(name, rows):
            if whole is None:
                whole = torch.empty(shape, dtype=block.dtype)
            if not shape:
                return whole.copy_(block)
            whole[row : row + len(block)] = block
            row += len(block)
        return torch.empty(shape) if whole is None else whole

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers, whatever their dtypes; read in blocks, and once only."""
        known: dict[frozenset[str], bool] = self.__dict__.setdefault("_equal", {})
        pair = frozenset((one, other))
        if pair not in known:
            known[pair] = self._compare(one, other)
        return known[pair]

    def _compare(self, one: str, other: str) -> bool:
        import torch

        if self.tensors[one].shape != self.tensors[other].shape:
            return False
        if not self.tensors[one].shape:  # a bare number has no rows
            return bool(self.read(one) == self.read(other))
        row = 0
        for block in self.blocks(one):
            beside = self.read(other, range(row, row + len(block)))
            wider = torch.promote_types(block.dtype, beside.dtype)
            if not torch.equal(block.to(wider), beside.to(wider)):
                return False
            row += len(block)
        return True

    def start_digests(self) -> Future[dict[str, str]]:
        """Begin `digests` in a thread of its own, once; `result()` waits for it.

        hashlib releases the GIL, so the files are hashed while something else converts. The thread is a daemon: an
        interrupted build does not wait for it.
        """
        future: Future[dict[str, str]] | None = self.__dict__.get("_digests")
        if future is None:
            future = self.__dict__["_digests"] = Future()
            threading.Thread(target=self._run_digests, args=(future,), name="digests", daemon=True).start()
        return future

    def _run_digests(self, future: Future[dict[str, str]]) -> None:
        try:
            future.set_result(self.digests())
        except BaseException as error:  # handed to whoever waits for the result
            future.set_exception(error)


class Unread(Checkpoint):
    """What is known of a checkpoint without its weights; `held` says what that is, in words."""

    held: str

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        self._refuse("weights")

    def digests(self) -> dict[str, str]:
        self._refuse("weights")

    def write_tokenizer(self, folder: Path) -> None:
        self._refuse("tokenizer")

    def grid(self, name: str) -> Grid | None:
        self._refuse("weights")

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.place}: {self.held}, its {what} were not read")


def stated_flag(config: Mapping[str, Any]) -> bool | None:
    """What config.json says of the head's tie, None where it is silent and the family's default holds.

    A wrapper's own word goes before that of its text part, as in transformers; in some either may say that it is tied.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else {}
    if text.get(TIE_FLAG) is True and config.get("model_type") in EITHER_TIES:
        return True
    for part in (config, text):
        if isinstance(part.get(TIE_FLAG), bool):
            return bool(part[TIE_FLAG])
    return None


def hash_file(path: Path, place: str) -> str:
    """sha256 of a file, read in order through one buffer; CheckpointError, beginning with `place`, if it cannot be."""
    digest = hashlib.sha256()
    buffer = bytearray(HASH_BLOCK_BYTES)
    view = memoryview(buffer)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(view[:count])
    except OSError as error:
        raise CheckpointError(f"{place}: {path.name} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
