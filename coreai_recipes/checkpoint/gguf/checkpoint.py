"""GGUFCheckpoint: a GGUF file, or the parts of a split one, as a source of weights."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint, Grid, TensorInfo
from coreai_recipes.checkpoint.gguf.architecture import Architecture, find_architecture
from coreai_recipes.checkpoint.gguf.config import rebuild_config
from coreai_recipes.checkpoint.gguf.header import MOST_TENSORS, Header, StoredTensor, read_header
from coreai_recipes.checkpoint.gguf.layers import without_drafts
from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.rope import ROPE_TENSORS
from coreai_recipes.checkpoint.gguf.rows import is_readable
from coreai_recipes.checkpoint.gguf.sources import JoinedSource, find_sources
from coreai_recipes.checkpoint.gguf.special_tokens import end_token_ids
from coreai_recipes.checkpoint.gguf.their_tokenizer import is_comparable, load_their_tokenizer
from coreai_recipes.checkpoint.gguf.tokenizer import check_tokenizer, write_tokenizer
from coreai_recipes.errors import CheckpointError

MOST_PARTS = 1000
# Scales are float16; those of Q4_0 may be below zero, where its numbers are -7..8 times one above.
GRIDS = {"Q4_0": Grid(4, 32, symmetric=False), "Q8_0": Grid(8, 32)}
PART = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


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
        self._tokenizer: Any = None
        headers = _read_parts(self.path)
        self.metadata: Metadata = headers[0].metadata
        self.architecture = architecture = find_architecture(self.metadata)
        found = {tensor.name: tensor for header in headers for tensor in header.tensors}
        found = without_drafts(architecture, self.metadata, found)
        CheckpointError.collect(_unusable(self.path, architecture, found.values()))
        self._files = sorted({header.path for header in headers})
        if "token_embd.weight" not in found:
            raise CheckpointError(f"{self.path}: has no token_embd.weight, so it does not hold a whole model")
        self.config: dict[str, Any] = rebuild_config(architecture, self.metadata, found)
        self._sources = find_sources(architecture, found, self.config)
        self.tensors = {
            name: TensorInfo(name, source.shape, source.parts[0].type.name, source.parts[0].path.name)
            for name, source in self._sources.items()
        }

    @property
    def says_untied(self) -> bool:
        """Never: output.weight is there or not, and may be a copy of the table."""
        return False

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        source = self._sources[name]
        count = source.shape[0]
        wanted = range(count) if rows is None else rows
        if wanted.step != 1 or wanted.start < 0 or wanted.stop > count:
            raise ValueError(f"{name} has rows 0 to {count - 1}; {wanted} is not a range of them")
        yield from source.blocks(wanted)

    def grid(self, name: str) -> Grid | None:
        source = self._sources[name]
        found = {GRIDS.get(part.type.name) for part in source.parts}
        grid = found.pop() if len(found) == 1 else None
        if grid is not None and not source.keeps_grids_of(grid.block):
            return None
        is_turned = isinstance(source, JoinedSource) and bool(source.how.transpose)
        return None if grid is None else replace(grid, transposed=is_turned)

    def weight_files(self) -> dict[str, Path]:
        return {path.name: path for path in self._files}

    def eos_token_ids(self) -> list[int]:
        return end_token_ids(self.metadata)

    def write_tokenizer(self, folder: Path) -> None:
        write_tokenizer(self.metadata, folder)

    def check_tokenizer(self, rows: int) -> None:
        check_tokenizer(self.metadata, rows)

    def load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_their_tokenizer(self.metadata)
        return self._tokenizer

    def is_comparable(self, text: str) -> bool:
        return is_comparable(self.metadata, text)


def _read_parts(path: Path) -> list[Header]:
    """The header at `path`, and those of the other parts when it is the first of several."""
    first = read_header(path)
    count = first.metadata.integer("split.count", 1) or 1
    if count == 1:
        return [first]
    if count > MOST_PARTS:
        raise CheckpointError(f"{path}: is one of {count} parts; at most {MOST_PARTS} are read")
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
    headers, total = [first], len(first.tensors)
    for part in paths[1:]:
        headers.append(read_header(part))
        total += len(headers[-1].tensors)
        if total > MOST_TENSORS:
            raise CheckpointError(f"{path}: its {count} parts hold more than {MOST_TENSORS} tensors")
    stated = first.metadata.integer("split.tensors.count", total)
    if total != stated or len({tensor.name for header in headers for tensor in header.tensors}) != total:
        raise CheckpointError(
            f"{path}: its {count} parts hold {total} tensors, not the {stated} different ones it states"
        )
    return headers


def _unusable(path: Path, architecture: Architecture, tensors: Iterable[StoredTensor]) -> Iterator[str]:
    """One problem for each tensor whose type cannot be read or whose name the architecture does not have."""
    rope_tensors = ROPE_TENSORS[architecture.rope_tensors]
    for tensor in tensors:
        if not is_readable(tensor.type):
            yield f"{path}: tensor {tensor.name} has type {tensor.type.name}, which gguf cannot dequantise"
        elif tensor.name not in rope_tensors and not architecture.knows(tensor.name):
            yield f"{path}: tensor {tensor.name} is unknown in the architecture {architecture.name}"
