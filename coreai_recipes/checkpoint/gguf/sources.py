"""Where each tensor of transformers' lies in a GGUF file, and what undoes llama.cpp's rewriting of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.checkpoint.gguf.architecture import EXPERTS, Architecture, Joined
from coreai_recipes.checkpoint.gguf.header import MOST_TENSORS, StoredTensor
from coreai_recipes.checkpoint.gguf.layout import AS_IT_IS, Layout, restore, value_head_order
from coreai_recipes.checkpoint.gguf.rows import read_rows, rows_together
from coreai_recipes.errors import CheckpointError

# What a stacked tensor's first axis counts, by the placeholder in transformers' name.
STACKED = ("{expert}", "{stream}")


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a stored tensor, which transformers has together too."""

    stored: StoredTensor
    rows: range


@dataclass(frozen=True)
class Source:
    """A tensor under transformers' name: runs of stored rows in its order, and what undoes their layout.

    `head_dim` is set when the rows of each head are interleaved, `columns` when those stand in another order.
    """

    runs: tuple[Run, ...]
    layout: Layout = AS_IT_IS
    head_dim: int | None = None
    columns: Tensor | None = None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return tuple({run.stored.name: run.stored for run in self.runs}.values())

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(run.rows) for run in self.runs), *self.runs[0].stored.shape[1:])

    def keeps_grids_of(self, block: int) -> bool:
        """Whether quantised values of `block` columns are still together, and still those values."""
        moved = self.columns is not None and not torch.equal(
            self.columns[::block] // block * block, self.columns[::block]
        )
        return not (moved or self.layout.logarithm or self.layout.shifted)

    def blocks(self, wanted: range) -> Iterator[Tensor]:
        """Consecutive blocks of the rows `wanted`, each valid until the next."""
        first = 0
        for run in self.runs:
            start, stop = max(wanted.start - first, 0), min(wanted.stop - first, len(run.rows))
            if start < stop:
                yield from self._read(run.stored, run.rows[start:stop])
            first += len(run.rows)

    def _read(self, stored: StoredTensor, wanted: range) -> Iterator[Tensor]:
        together = lcm(rows_together(stored), self.head_dim or 1)
        first = wanted.start // together * together
        last = -(-wanted.stop // together) * together
        for block in read_rows(stored, range(first, last), together):
            restored = restore(block, self.layout, self.head_dim, self.columns)
            kept = restored[max(0, wanted.start - first) : wanted.stop - first]
            first += len(block)
            if len(kept):
                yield kept


@dataclass(frozen=True)
class JoinedSource:
    """Experts (E, rows, columns), or their biases (E, rows), put together of one stored tensor or two."""

    parts: tuple[StoredTensor, ...]
    how: Joined

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, *columns = self.parts[0].shape
        shape = (experts, rows * len(self.parts), *columns)
        return (shape[0], shape[2], shape[1]) if self.how.transpose else shape

    def keeps_grids_of(self, block: int) -> bool:
        return True

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


@dataclass(frozen=True)
class HeadsSource:
    """What makes keys and values of a narrow stream (H * (K + V), R): stored as (H, R, K) and (H, V, R)."""

    parts: tuple[StoredTensor, ...]

    @property
    def _rows(self) -> int:
        return self.parts[0].shape[2] + self.parts[1].shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.parts[0].shape[0] * self._rows, self.parts[0].shape[1])

    def keeps_grids_of(self, block: int) -> bool:
        return False

    def blocks(self, wanted: range) -> Iterator[Tensor]:
        """The rows of one head at a time."""
        for head in range(wanted.start // self._rows, -(-wanted.stop // self._rows)):
            keys, values = (_read_expert(part, head)[0] for part in self.parts)
            first = head * self._rows
            yield torch.cat([keys.T, values])[max(0, wanted.start - first) : wanted.stop - first]


def _read_expert(stored: StoredTensor, expert: int) -> Tensor:
    return torch.cat([block.clone() for block in read_rows(stored, range(expert, expert + 1), 1)])


AnySource = Source | JoinedSource | HeadsSource


def find_sources(
    architecture: Architecture, found: Mapping[str, StoredTensor], config: dict[str, Any]
) -> dict[str, AnySource]:
    """Every tensor of the model by transformers' name. Raises CheckpointError for shapes that the metadata denies."""
    sources: dict[str, AnySource] = {}
    for name, stored in found.items():
        target = architecture.transformers_name(name)
        if target is None:
            continue
        placeholder = next((placeholder for placeholder in STACKED if placeholder in target), None)
        if placeholder is None:
            sources[target] = _source_of(architecture.layout_of(target), stored, config)
            continue
        _check_stacked([stored], config, placeholder)
        for index, one in enumerate(split_experts(stored)):
            sources[target.replace(placeholder, str(index))] = _whole(one)
        if len(sources) > MOST_TENSORS:
            raise CheckpointError(f"{stored.path}: has more than {MOST_TENSORS} tensors, each expert's counted")
    for target, how, parts in architecture.joined_of(found):
        if how.rows is None:
            _check_stacked(parts, config, "{expert}")
            sources[target] = JoinedSource(tuple(parts), how)
        elif how.rows == "in_turn":
            sources[target] = Source(tuple(Run(part, range(part.shape[0])) for part in parts))
        elif how.rows == "by_head":
            sources[target] = _heads_source(parts, config)
        else:
            sources[target] = Source(tuple(_by_key_head(parts, config)))
    return sources


def _whole(stored: StoredTensor) -> Source:
    return Source((Run(stored, range(stored.shape[0])),))


def _source_of(layout: Layout, stored: StoredTensor, config: dict[str, Any]) -> Source:
    stored = replace(stored, shape=layout.shape(stored.shape))
    whole = replace(_whole(stored), layout=layout)
    if layout.interleaved is not None:
        return replace(whole, head_dim=_interleaved_head_dim(layout.interleaved, stored, config))
    if layout.value_heads is None:
        return whole
    order, of = value_head_order(config), stored.shape[-1 if layout.value_heads == "columns" else 0]
    first = of - len(order) * config["linear_value_head_dim"] if layout.value_heads == "last_rows" else 0
    size = (of - first) // len(order)
    if first < 0 or size * len(order) != of - first:
        problem = f"is {stored.shape}, the metadata says {len(order)} value heads"
        raise CheckpointError(f"{stored.path}: tensor {stored.name} {problem}")
    runs = [range(first + head * size, first + (head + 1) * size) for head in order]
    if layout.value_heads == "columns":
        return replace(whole, columns=torch.tensor([column for run in runs for column in run]))
    before = [range(first)] if first else []
    return replace(whole, runs=tuple(Run(stored, run) for run in (*before, *runs)))


def _by_key_head(parts: list[StoredTensor], config: dict[str, Any]) -> Iterator[Run]:
    """Qwen3-Next: of each key head in turn its rows of q, k, v and z, which lie in two tensors, q, k and v in one."""
    mixed, gates = parts
    heads, keys = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] // heads * config["linear_value_head_dim"]
    for part, rows in ((mixed, heads * (2 * keys + values)), (gates, heads * values)):
        if part.shape[0] != rows:
            problem = f"has {part.shape[0]} rows, the metadata says {rows}"
            raise CheckpointError(f"{part.path}: tensor {part.name} {problem}")
    for head in range(heads):
        for first, size in ((0, keys), (heads * keys, keys), (2 * heads * keys, values)):
            yield Run(mixed, range(first + head * size, first + (head + 1) * size))
        yield Run(gates, range(head * values, (head + 1) * values))


def _heads_source(parts: list[StoredTensor], config: Mapping[str, Any]) -> HeadsSource:
    heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
    expected = ((heads, rank, config["qk_nope_head_dim"]), (heads, config["v_head_dim"], rank))
    for part, shape in zip(parts, expected, strict=True):
        if part.shape != shape:
            raise CheckpointError(f"{part.path}: tensor {part.name} is {part.shape}, the metadata says {shape}")
    return HeadsSource(tuple(parts))


def split_experts(stored: StoredTensor) -> Iterator[StoredTensor]:
    """Each expert of a stacked tensor (E, rows, columns) as a tensor of its own."""
    byte_count = stored.byte_count // stored.shape[0]
    for expert in range(stored.shape[0]):
        start = stored.start + expert * byte_count
        yield replace(stored, shape=stored.shape[1:], start=start, byte_count=byte_count)


def _check_stacked(parts: list[StoredTensor], config: Mapping[str, Any], placeholder: str) -> None:
    first = parts[0]
    axes = 3 if first.name.endswith(".weight") else 2
    if placeholder == "{expert}":
        what, count = "experts", next((config[field] for field in EXPERTS if field in config), None)
    else:
        what, count = "streams", config["altup_num_inputs"] - 1
    for part in parts:
        if len(part.shape) != axes:
            raise CheckpointError(f"{part.path}: tensor {part.name} is {part.shape}, not {axes} axes of {what}")
        if part.shape[0] != count:
            problem = f"holds {part.shape[0]} {what}, the metadata says {count}"
            raise CheckpointError(f"{part.path}: tensor {part.name} {problem}")
        if part.shape != first.shape:
            raise CheckpointError(f"{part.path}: tensor {part.name} is {part.shape}, but {first.name} is {first.shape}")


def _interleaved_head_dim(field: str, stored: StoredTensor, config: Mapping[str, Any]) -> int:
    heads, head_dim = config[field], config["head_dim"]
    if stored.shape[0] != heads * head_dim or head_dim % 2:
        problem = f"has {stored.shape[0]} rows, the metadata says {heads} heads of {head_dim}"
        raise CheckpointError(f"{stored.path}: tensor {stored.name} {problem}")
    return int(head_dim)
