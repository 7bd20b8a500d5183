"""GGUFCheckpoint: a GGUF file, or the parts of a split one, as a source of weights."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint, TensorInfo
from coreai_recipes.checkpoint.gguf.architecture import Architecture, find_architecture
from coreai_recipes.checkpoint.gguf.config import rebuild_config
from coreai_recipes.checkpoint.gguf.header import Header, StoredTensor, read_header
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.rope import ROPE_TENSORS
from coreai_recipes.checkpoint.gguf.rows import is_readable, read_rows, rows_together
from coreai_recipes.checkpoint.gguf.tokenizer import end_token_ids, write_tokenizer
from coreai_recipes.errors import CheckpointError

PART = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


@dataclass(frozen=True)
class _Source:
    """Where a tensor comes from and what undoes llama.cpp's rewriting of it.

    `head_dim` is set when the rows of each head are interleaved; `shifted` when one was added to a norm's weight.
    """

    stored: StoredTensor
    stamp: tuple[int, int]
    head_dim: int | None
    shifted: bool


class GGUFCheckpoint(Checkpoint):
    """A GGUF file under transformers' tensor names, layout and config, so that nothing downstream knows the difference.

    F16, BF16 and F32 tensors keep their bits; F64 and quantised types are given as float32.
    """

    def __init__(self, path: Path) -> None:
        """Read the headers of the file at `path`, and of the other parts when it is the first of a split one.

        Raises CheckpointError, with every problem of one kind at once, for a file that is not a whole and readable GGUF
        model of a known architecture.
        """
        self.path = Path(path)
        self.source = self.path.name
        headers = _read_parts(self.path)
        self.metadata: Metadata = headers[0].metadata
        architecture = find_architecture(self.metadata)
        found = {tensor.name: (tensor, header.stamp) for header in headers for tensor in header.tensors}
        CheckpointError.collect(_unusable(self.path, architecture, [tensor for tensor, _ in found.values()]))
        self._files = sorted({header.path for header in headers})
        table = found.get("token_embd.weight")
        if table is None:
            raise CheckpointError(f"{self.path}: has no token_embd.weight: it holds no whole model")
        rope_tensors = ROPE_TENSORS[architecture.rope_tensors]
        self.config: dict[str, Any] = rebuild_config(
            architecture,
            self.metadata,
            found.keys(),
            vocab_size=table[0].shape[0],
            rope_factors={name: _read_whole(*found[name]) for name in rope_tensors if name in found},
        )
        self._sources: dict[str, _Source] = {}
        for name, (tensor, stamp) in found.items():
            ours = architecture.transformers_name(name)
            if ours is not None:
                head_dim = self._interleaved_head_dim(architecture, ours, tensor)
                self._sources[ours] = _Source(tensor, stamp, head_dim, architecture.has_shifted_norm(ours))
        self.tensors = {
            name: TensorInfo(name, source.stored.shape, source.stored.type.name, source.stored.path.name)
            for name, source in self._sources.items()
        }

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        source = self._sources[name]
        count = source.stored.shape[0]
        wanted = range(count) if rows is None else rows
        if wanted.step != 1 or wanted.start < 0 or wanted.stop > count:
            raise ValueError(f"{name} has rows 0 to {count - 1}; {wanted} is no range of them")
        together = lcm(rows_together(source.stored), source.head_dim or 1)
        first = wanted.start // together * together
        last = -(-wanted.stop // together) * together
        for block in read_rows(source.stored, range(first, last), together, source.stamp):
            kept = _restore(block, source)[max(0, wanted.start - first) : wanted.stop - first]
            first += len(block)
            if len(kept):
                yield kept

    def digests(self) -> dict[str, str]:
        digests = {}
        for path in self._files:
            try:
                with open(path, "rb", buffering=0) as file:
                    digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        return digests

    def eos_token_ids(self) -> list[int]:
        return end_token_ids(self.metadata)

    def write_tokenizer(self, folder: Path) -> None:
        write_tokenizer(self.metadata, folder)

    def _interleaved_head_dim(self, architecture: Architecture, name: str, tensor: StoredTensor) -> int | None:
        heads_field = architecture.heads_field(name)
        if heads_field is None:
            return None
        heads, head_dim = self.config[heads_field], self.config["head_dim"]
        if tensor.shape[0] != heads * head_dim or head_dim % 2:
            problem = f"has {tensor.shape[0]} rows, the metadata says {heads} heads of {head_dim}"
            raise CheckpointError(f"{self.path}: tensor {tensor.name} {problem}")
        return int(head_dim)


def _restore(block: Tensor, source: _Source) -> Tensor:
    """Undo the interleaving of each head's halves, and the one that was added to a norm's weight (in float32)."""
    if source.head_dim is not None:
        heads = block.reshape(-1, source.head_dim // 2, 2, *block.shape[1:])
        block = heads.transpose(1, 2).reshape(block.shape)
    return block.float() - 1.0 if source.shifted else block


def _read_parts(path: Path) -> list[Header]:
    """The header at `path`, and those of the other parts when it is the first of several."""
    first = read_header(path)
    count = first.metadata.integer("split.count", 1) or 1
    if count == 1:
        return [first]
    match = PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise CheckpointError(f"{path}: is one of {count} parts, but is not named like NAME-00001-of-{count:05}.gguf")
    if first.metadata.integer("split.no", 0) != 0 or int(match["number"]) != 1:
        raise CheckpointError(
            f"{path}: is not the first of {count} parts; give {match['stem']}-00001-of-{count:05}.gguf"
        )
    paths = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    CheckpointError.collect(
        f"{part}: is missing: {path.name} has {count} parts" for part in paths if not part.is_file()
    )
    headers = [first, *(read_header(part) for part in paths[1:])]
    total = sum(len(header.tensors) for header in headers)
    stated = first.metadata.integer("split.tensors.count", total)
    if total != stated or len({tensor.name for header in headers for tensor in header.tensors}) != total:
        raise CheckpointError(
            f"{path}: its {count} parts hold {total} tensors, not the {stated} different ones it states"
        )
    return headers


def _unusable(path: Path, architecture: Architecture, tensors: list[StoredTensor]) -> Iterator[str]:
    """One problem for each tensor whose type cannot be read or whose name the architecture does not have."""
    rope_tensors = ROPE_TENSORS[architecture.rope_tensors]
    for tensor in tensors:
        if not is_readable(tensor.type):
            yield f"{path}: tensor {tensor.name} has type {tensor.type.name}, which gguf cannot dequantise"
        elif tensor.name not in rope_tensors and architecture.transformers_name(tensor.name) is None:
            yield f"{path}: tensor {tensor.name} is not one that the architecture {architecture.name} has"


def _read_whole(stored: StoredTensor, stamp: tuple[int, int]) -> Tensor:
    blocks = read_rows(stored, range(stored.shape[0]), rows_together(stored), stamp)
    return torch.cat([block.clone() for block in blocks])
