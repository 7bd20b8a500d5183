"""Safetensors checkpoints: one file, or a folder with one file or an index of shards.

Bytes are read with `readinto` into a reused buffer. A memory map would be simpler, but it counts every touched page as
resident: 1.80 GB against 0.24 GB on a file of 1.6 GB.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from coreai_recipes.checkpoint.base import Checkpoint, Grid, TensorInfo
from coreai_recipes.checkpoint.packing import FP8, SCALE, describe_packing, find_foreign, unpack
from coreai_recipes.checkpoint.safetensors_header import HeaderError, StoredFile, read_header
from coreai_recipes.checkpoint.settings import read_eos_token_ids, read_json_object, read_settings
from coreai_recipes.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 2 << 20
FLOAT_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
INTEGER_DTYPES = {"I64": "int64", "I32": "int32"}  # no weights, but lists of tokens are stored so
PART_DTYPES = {"U8": "uint8", "F8_E4M3": "uint8", "I8": "int8", "U32": "int32"}  # of which packing makes floats

MOST_INDEXED = 1 << 18  # over all shards; Kimi K2, with 384 experts in 61 layers, has 140,000

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_REASON = (
    "a pickle runs its author's code when it is loaded; convert it to safetensors on a machine where you trust it "
    "(transformers: from_pretrained, then save_pretrained)"
)
SHARD_NAME = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")


class SafetensorsCheckpoint(Checkpoint):
    """A folder of safetensors as transformers writes it, or one such file with config.json beside it."""

    def __init__(self, path: str | Path, *, source: str | None = None, block_bytes: int = BLOCK_BYTES) -> None:
        """Parse every header. `source` names a hub snapshot. CheckpointError holds everything that is wrong."""
        self.path = Path(path)
        self.source = source or self.path.resolve().name
        self._hub_source = source
        self._block_bytes = block_bytes
        self._spare_buffers: list[bytearray] = []
        self._tokenizer: Any = None
        self._folder = self.path if self.path.is_dir() else self.path.parent
        self._files: dict[str, StoredFile] = {}
        problems: list[str] = []
        index = self._locate_files(problems)
        self._stored = self._list_tensors(index, problems)
        self.config = self._read_config(problems)
        # what does not hold together yet is not read further
        self.tensors, self._packed = unpack(self._stored, self.config, None if problems else self._read_stored)
        problems += [why] if (why := find_foreign(self.tensors)) else []
        CheckpointError.collect(f"{self.place}: {problem}" for problem in problems)

    @property
    def packing(self) -> str | None:
        return describe_packing(self._packed)

    @property
    def place(self) -> str:
        return f"checkpoint {self._hub_source or self.path}"

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        """Whole rows of the first axis, as many as fit 2 MiB and at least one, in the stored dtype; what is stored as
        small floats and scales, in a dtype that holds their product.

        Raises CheckpointError for a tensor that is not there, or that is stored as neither floats nor whole numbers.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.place}: has no tensor {name}")
        reason = self.why_unreadable(name)
        if reason and self.tensors[name].dtype not in INTEGER_DTYPES:
            raise CheckpointError(f"{self.place}: {name} {reason}")
        shape = self.tensors[name].shape
        wanted = range(shape[0] if shape else 1) if rows is None else rows
        if wanted.step != 1 or wanted.start < 0 or (wanted.stop > (shape[0] if shape else 1)):
            raise ValueError(f"{name} is {shape}: {wanted} is not a range of its rows")
        packed = self._packed.get(name)
        return packed.blocks(self._read_stored, wanted) if packed else self._stream_rows(name, wanted)

    def grid(self, name: str) -> Grid | None:
        packed = self._packed.get(name)
        return None if packed is None else packed.grid(self._read_stored)

    def why_unreadable(self, name: str) -> str | None:
        dtype = self.tensors[name].dtype
        if dtype in FLOAT_DTYPES or name in self._packed:
            return None
        if dtype == FP8:
            return f"is stored as {dtype}, and no {name}{SCALE} is here that fits it: use the release in BF16"
        if dtype.startswith(("F4", "F6", "F8")):
            return f"is stored as {dtype}, whose scales are not applied: use the release in BF16"
        return f"is stored as {dtype}: a weight is BF16, F16, F32 or F64"

    def weight_files(self) -> dict[str, Path]:
        return {name: stored.path for name, stored in self._files.items()}

    def folder(self) -> Path:
        return self._folder

    def config_file(self) -> Path:
        return self._folder / "config.json"

    def eos_token_ids(self) -> list[int]:
        return read_eos_token_ids(self._folder, self.config, self.place)

    def write_tokenizer(self, folder: Path) -> None:
        from coreai_recipes.checkpoint.tokenizer_files import write_tokenizer

        write_tokenizer(self._folder, folder, self.place, self.eos_token_ids(), self.load_tokenizer())

    def asking_tokenizer(self) -> list[str] | None:
        from coreai_recipes.checkpoint.asking_tokenizer import command_for

        is_imported = not {"torch", "transformers"}.isdisjoint(sys.modules)
        return None if is_imported else command_for(self.path, self._hub_source)

    def check_tokenizer(self, rows: int) -> None:
        from coreai_recipes.checkpoint.tokenizer_files import check_tokenizer

        check_tokenizer(self._folder, rows, self.place)

    def find_other_tokenizer(self, sealed: Path) -> str | None:
        from coreai_recipes.checkpoint.tokenizer_identity import find_other_file

        return find_other_file(self._folder, sealed, self.config, self.place)

    def load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from coreai_recipes.checkpoint.auto_tokenizer import load_tokenizer

            repo_id = None if self._hub_source is None else self._hub_source.partition("@")[0]
            self._tokenizer = load_tokenizer(self._folder, repo_id)
        return self._tokenizer

    def _locate_files(self, problems: list[str]) -> dict[str, str] | None:
        """Fill `_files` and give the index (tensor name to file), None where one file holds everything."""
        if not self.path.is_dir():
            refuse_wrong_file(self.path, self.place)
            self._add_file(self.path.name, problems)
            return None
        if (self.path / "model.safetensors").is_file():
            self._add_file("model.safetensors", problems)
            return None
        index_path = self.path / "model.safetensors.index.json"
        if index_path.is_file():
            index = read_index(index_path, self.place)
            for name, count in sorted(Counter(index.values()).items()):
                self._add_shard(name, count, problems)
            return index
        self._add_file(find_lone_file(self.path, self.place), problems)
        return None

    def _add_shard(self, name: str, tensors: int, problems: list[str]) -> None:
        if why := why_no_shard(name):
            problems.append(why)
        elif not (self._folder / name).is_file():
            problems.append(f"{name} is missing: the index lists {tensors} tensors in it; download it again")
        else:
            self._add_file(name, problems)

    def _add_file(self, name: str, problems: list[str]) -> None:
        try:
            self._files[name] = read_header(self._folder / name)
        except HeaderError as error:
            problems.append(f"{name}: {error}")
        if sum(len(stored.tensors) for stored in self._files.values()) > MOST_INDEXED:
            raise CheckpointError(f"{self.place}: its files hold more than {MOST_INDEXED} tensors")

    def _list_tensors(self, index: dict[str, str] | None, problems: list[str]) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for file, stored in self._files.items():
            for name, entry in stored.tensors.items():
                named = (index or {}).get(name, file)
                if named == file:
                    if name in tensors and name not in (index or {}):
                        problems.append(f"{name} is in {tensors[name].file} and in {file}, and the index names neither")
                    tensors[name] = TensorInfo(name, entry.shape, entry.dtype, file)
        for name, file in (index or {}).items():
            if file in self._files and name not in self._files[file].tensors:
                problems.append(f"{name} is not in {file}, where the index places it")
        return tensors

    def _read_config(self, problems: list[str]) -> dict[str, Any]:
        path = self._folder / "config.json"
        if not path.is_file():
            problems.append("has no config.json; copy it from the source of the weights")
            return {}
        try:
            return read_settings(path, self.place)
        except CheckpointError as error:
            problems.extend(problem.removeprefix(f"{self.place}: ") for problem in error.problems)
            return {}

    def _read_stored(self, name: str, rows: range) -> Tensor:
        import torch

        return torch.cat([block.clone().view(-1, *block.shape[1:]) for block in self._stream_rows(name, rows)])

    def _stream_rows(self, name: str, rows: range) -> Iterator[Tensor]:
        import torch

        info = self._stored[name]
        stored = self._files[info.file]
        entry = stored.tensors[name]
        dtype = getattr(torch, {**FLOAT_DTYPES, **INTEGER_DTYPES, **PART_DTYPES}[info.dtype])
        row_elements = math.prod(info.shape[1:])
        row_bytes = row_elements * dtype.itemsize
        if not row_bytes or not rows:
            yield torch.empty((len(rows), *info.shape[1:]), dtype=dtype)
            return
        rows_per_block = max(1, self._block_bytes // row_bytes)
        buffer = self._take_buffer(min(rows_per_block, len(rows)) * row_bytes)
        try:
            with open_unchanged(stored, self.place) as file:
                file.seek(stored.data_start + entry.start + rows.start * row_bytes)
                for first in range(rows.start, rows.stop, rows_per_block):
                    count = min(rows_per_block, rows.stop - first)
                    fill_from(file, memoryview(buffer)[: count * row_bytes], stored.path, self.place)
                    block = torch.frombuffer(buffer, dtype=dtype, count=count * row_elements)
                    yield block.view((count, *info.shape[1:]) if info.shape else ())
        finally:
            self._spare_buffers.append(buffer)

    def _take_buffer(self, size: int) -> bytearray:
        """A buffer of its own for each reader that is alive at once; in the common case it is always the same one."""
        while self._spare_buffers:
            buffer = self._spare_buffers.pop()
            if len(buffer) >= size:
                return buffer
        return bytearray(max(size, self._block_bytes))


def read_index(path: Path, place: str) -> dict[str, str]:
    """The `weight_map` of an index: tensor name to file name."""
    weight_map = read_json_object(path, place, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{place}: {path.name} has no weight_map, which locates each tensor")
    if len(weight_map) > MOST_INDEXED:
        raise CheckpointError(f"{place}: {path.name} names {len(weight_map)} tensors; at most {MOST_INDEXED} are read")
    wrong = [name for name, file in weight_map.items() if not (name.isprintable() and isinstance(file, str) and file)]
    if wrong:
        raise CheckpointError(f"{place}: {path.name} names no file for {wrong[0]!a:.80}")
    return weight_map


def why_no_shard(name: str) -> str | None:
    """What is wrong with a file's name in an index, before anybody is asked for the file."""
    if leaves_its_folder(name):
        return f"model.safetensors.index.json names {name!r}, a path that leaves the folder"
    if not name.endswith(".safetensors"):
        return f"model.safetensors.index.json names {name!r}, which is not a safetensors file"
    return None


def leaves_its_folder(name: str) -> bool:
    """Whether a relative file name leads out of its folder, read as text: a hub snapshot's files are symbolic links."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name


def refuse_wrong_file(path: Path, place: str) -> None:
    """CheckpointError when `path` is a pickle, a single shard, or no safetensors file at all."""
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(f"{place}: is a pickle, and pickles are refused: {PICKLE_REASON}")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{place}: is neither a .safetensors nor a .gguf file")
    shard = SHARD_NAME.search(path.name)
    if shard and int(shard[1]) > 1:
        raise CheckpointError(f"{place}: is one of {int(shard[1])} shards; give the folder that holds all of them")


def find_lone_file(folder: Path, place: str) -> str:
    """The name of the only safetensors file of a folder that has neither model.safetensors nor an index."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1 and not SHARD_NAME.search(found[0]):
        return found[0]
    if found:
        raise CheckpointError(
            f"{place}: holds {', '.join(found[:3])}{' ...' if len(found) > 3 else ''} but no "
            "model.safetensors.index.json, which lists the tensors of each shard; download it too"
        )
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise CheckpointError(f"{place}: holds only pickles ({', '.join(pickles[:3])}), all refused: {PICKLE_REASON}")
    raise CheckpointError(f"{place}: holds no weights: neither a .safetensors file nor a .gguf file")


def open_unchanged(stored: StoredFile, place: str) -> io.FileIO:
    """The file, open for reading; CheckpointError when it is no longer the one whose header was read."""
    try:
        file = io.FileIO(stored.path)
    except OSError as error:
        raise CheckpointError(f"{place}: {stored.path.name} cannot be read: {error.strerror or error}") from error
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (stored.size, stored.changed):
        file.close()
        raise CheckpointError(f"{place}: {stored.path.name} changed after its header was read; start again")
    return file


def fill_from(file: io.FileIO, view: memoryview, path: Path, place: str) -> None:
    """Fill `view` from the file's position on; CheckpointError when the file ends first."""
    filled = 0
    while filled < len(view):
        try:
            count = file.readinto(view[filled:])
        except OSError as error:
            raise CheckpointError(f"{place}: {path.name} cannot be read: {error.strerror or error}") from error
        if not count:
            raise CheckpointError(f"{place}: {path.name} ends early; it was truncated while it was read")
        filled += count
