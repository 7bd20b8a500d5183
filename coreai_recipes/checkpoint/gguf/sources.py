"""Where each tensor of transformers' lies in a GGUF file, and what undoes llama.cpp's rewriting of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.checkpoint.gguf.architecture import Architecture, Joined
from coreai_recipes.checkpoint.gguf.header import MOST_TENSORS, StoredTensor
from coreai_recipes.checkpoint.gguf.rows import read_rows, rows_together
from coreai_recipes.errors import CheckpointError


@dataclass(frozen=True)
class Source:
    """One stored tensor under transformers' name.

    `head_dim` is set when the rows of each head are interleaved, `shifted` when one was added to a norm's weight,
    `squeezed` when (rows, 1, columns) are stored as (rows, columns).
    """

    stored: StoredTensor
    head_dim: int | None = None
    shifted: bool = False
    squeezed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        rows, *columns = self.stored.shape or (0,)
        return (rows, 1, *columns) if self.squeezed else self.stored.shape

    def blocks(self, wanted: range) -> Iterator[Tensor]:
        """Consecutive blocks of the rows `wanted`, each valid until the next."""
        together = lcm(rows_together(self.stored), self.head_dim or 1)
        first = wanted.start // together * together
        last = -(-wanted.stop // together) * together
        for block in read_rows(self.stored, range(first, last), together):
            kept = self._restore(block)[max(0, wanted.start - first) : wanted.stop - first]
            first += len(block)
            if len(kept):
                yield kept

    def _restore(self, block: Tensor) -> Tensor:
        """Undo the interleaving of each head's halves, and the one that was added to a norm's weight (in float32)."""
        if self.head_dim is not None:
            heads = block.reshape(-1, self.head_dim // 2, 2, *block.shape[1:])
            block = heads.transpose(1, 2).reshape(block.shape)
        if self.squeezed:
            block = block.unsqueeze(1)
        return block.float() - 1.0 if self.shifted else block


@dataclass(frozen=True)
class JoinedSource:
    """Experts (E, rows, columns), or their biases (E, rows), put together of one stored tensor or two."""

    parts: tuple[StoredTensor, ...]
    how: Joined

    @property
    def stored(self) -> StoredTensor:
        return self.parts[0]

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, *columns = self.stored.shape
        shape = (experts, rows * len(self.parts), *columns)
        return (shape[0], shape[2], shape[1]) if self.how.transpose else shape

    def blocks(self, wanted: range) -> Iterator[Tensor]:
        """One expert at a time."""
        for expert in wanted:
            # Each lies in a buffer that its reader reuses: copied before the next part is read.
            parts = [_read_expert(part, expert) for part in self.parts]
            if self.how.alternate:
                block = torch.stack(parts, 2).reshape(1, -1, *parts[0].shape[2:])
            else:
                block = torch.cat(parts, 1)
            yield block.transpose(1, 2) if self.how.transpose else block


def _read_expert(stored: StoredTensor, expert: int) -> Tensor:
    return torch.cat([block.clone() for block in read_rows(stored, range(expert, expert + 1), 1)])


def find_sources(
    architecture: Architecture, found: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> dict[str, Source | JoinedSource]:
    """Every tensor of the model by transformers' name. Raises CheckpointError for shapes that the metadata denies."""
    sources: dict[str, Source | JoinedSource] = {}
    for name, stored in found.items():
        target = architecture.transformers_name(name)
        if target is None:
            continue
        if "{expert}" in target:
            _check_experts([stored], config)
            for expert, one in enumerate(split_experts(stored)):
                sources[target.replace("{expert}", str(expert))] = Source(one)
            if len(sources) > MOST_TENSORS:
                raise CheckpointError(f"{stored.path}: has more than {MOST_TENSORS} tensors, each expert's counted")
            continue
        head_dim = _interleaved_head_dim(architecture, target, stored, config)
        shifted, squeezed = architecture.has_shifted_norm(target), architecture.is_squeezed(target)
        sources[target] = Source(stored, head_dim, shifted, squeezed)
    for target, how, parts in architecture.joined_of(found):
        _check_experts(parts, config)
        sources[target] = JoinedSource(tuple(parts), how)
    return sources


def split_experts(stored: StoredTensor) -> Iterator[StoredTensor]:
    """Each expert of a stacked tensor (E, rows, columns) as a tensor of its own."""
    byte_count = stored.byte_count // stored.shape[0]
    for expert in range(stored.shape[0]):
        start = stored.start + expert * byte_count
        yield replace(stored, shape=stored.shape[1:], start=start, byte_count=byte_count)


def _check_experts(parts: list[StoredTensor], config: Mapping[str, Any]) -> None:
    first = parts[0]
    axes = 3 if first.name.endswith(".weight") else 2
    experts = config.get("num_experts", config.get("num_local_experts"))
    for part in parts:
        if len(part.shape) != axes:
            raise CheckpointError(f"{part.path}: tensor {part.name} is {part.shape}, not {axes} axes of experts")
        if part.shape[0] != experts:
            problem = f"holds {part.shape[0]} experts, the metadata says {experts}"
            raise CheckpointError(f"{part.path}: tensor {part.name} {problem}")
        if part.shape != first.shape:
            raise CheckpointError(f"{part.path}: tensor {part.name} is {part.shape}, but {first.name} is {first.shape}")


def _interleaved_head_dim(
    architecture: Architecture, name: str, stored: StoredTensor, config: Mapping[str, Any]
) -> int | None:
    heads_field = architecture.heads_field(name)
    if heads_field is None:
        return None
    heads, head_dim = config[heads_field], config["head_dim"]
    if stored.shape[0] != heads * head_dim or head_dim % 2:
        problem = f"has {stored.shape[0]} rows, the metadata says {heads} heads of {head_dim}"
        raise CheckpointError(f"{stored.path}: tensor {stored.name} {problem}")
    return int(head_dim)
