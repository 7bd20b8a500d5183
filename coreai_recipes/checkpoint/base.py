"""What every source of weights offers, whatever its format. Of ours it imports only the errors."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header declares it: `dtype` in the format's own word (BF16, F16, F32, Q4_K ...)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str


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

    @abstractmethod
    def digests(self) -> dict[str, str]:
        """sha256 of each weight file, by its name relative to the checkpoint."""

    @abstractmethod
    def eos_token_ids(self) -> list[int]:
        """The ids that end an answer, from generation_config.json, config.json or the metadata, in that order."""

    @abstractmethod
    def write_tokenizer(self, folder: Path) -> None:
        """Put tokenizer.json, tokenizer_config.json, generation_config.json and the chat template into `folder`."""

    def read(self, name: str, rows: range | None = None) -> Tensor:
        """The whole tensor (or `rows` of it) as a copy of its own, in the dtype that `blocks` gives."""
        import torch

        return torch.cat([block.clone() for block in self.blocks(name, rows)])
