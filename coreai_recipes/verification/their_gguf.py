"""A GGUF file as transformers itself reads it, so that the reference is independent of our reader.

transformers (5.23, `load_gguf_checkpoint`) knows fewer architectures than we do, and of those it knows it leaves out
fields that change the logits: scaled rotaries, biases, soft-caps, windows by layer. What it reads is taken from it, and
seen where it is not what we read; what it leaves out is ours, and named in the report.
"""

import functools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from coreai_recipes.checkpoint.auto_tokenizer import quiet_transformers
from coreai_recipes.checkpoint.base import TIE_FLAG, Checkpoint, TensorInfo
from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.their_reader import mapped_plainly
from coreai_recipes.errors import CheckpointError

OURS = "our reader (not independent)"
THEIRS = "transformers"
# What transformers reads otherwise than the file means it, and why.
NOT_TAKEN = {
    "vocab_size": "it counts tokens, of which there may be fewer than rows of the table",
    "rope_scaling": "it reads the lengths of gpt-oss's keys in place of their values",
    "_model_name_or_path": "a name",
    "bos_token_id": "no part of the logits",
    "eos_token_id": "no part of the logits",
    "pad_token_id": "no part of the logits",
    "unk_token_id": "no part of the logits",
}
CONTEXT = "max_position_embeddings"
TABLES = ("token_embd.weight", "output.weight")  # whose rows may be read one by one
ROWS = 4096


class TheirReading:
    """What transformers reads of a GGUF file.

    Attributes:
        config: None where it cannot read the file, and `why` says why.
        is_whole: false for a file in several parts, of which transformers sees the first.
        tensors: who reads the tensors of the reference, known once there was one.
        names: which parameter each tensor is of, known then too.
    """

    def __init__(self, path: Path, is_whole: bool) -> None:
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        self.path, self.is_whole, self.tensors = path, is_whole, OURS
        self.names: dict[str, str] | None = None
        self.config: dict[str, Any] | None = None
        self.why: str | None = None
        try:
            # the file is gone through once, and its hundreds of thousands of tokens not again: no config is of them
            reader = self.reader
            with patch("gguf.GGUFReader", lambda _: reader), quiet_transformers():
                self.config = load_gguf_checkpoint(str(path))["config"]
        except Exception as error:  # an architecture that it does not know, or a key that it stumbles over
            self.why = " ".join(str(error).split())

    @cached_property
    def reader(self) -> Any:
        return open_reader(self.path)

    def choose_tensors(self, model: Any, checkpoint: Checkpoint) -> Checkpoint:
        """transformers' own reading of the tensors, or ours where it has no tensor for a parameter."""
        if self.config is None or not self.is_whole:
            return checkpoint
        try:
            theirs = TheirTensors(model, self)
        except (KeyError, NotImplementedError) as missing:
            self.tensors = f"{OURS}: {THEIRS} finds no tensor for {' '.join(map(str, missing.args))}"
            return checkpoint
        self.tensors = THEIRS
        return theirs

    def merge(self, ours: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config that the reference has, and what the report says of it."""
        if self.config is None:
            return dict(ours), {"config": OURS, "why": self.why}
        read = {field: value for field, value in self.config.items() if self._takes(field, value, ours)}
        merged, disagreeing = dict(ours), {}
        for field, value in read.items():
            if not _alike(value, _value_of(ours, field)):
                disagreeing[field] = {"transformers": value, "our reader": _value_of(ours, field)}
                _put(merged, field, value)
        said: dict[str, Any] = {"config": THEIRS, "not_read_by_transformers": _left_out(ours, read)}
        if disagreeing:
            said["disagreeing"] = disagreeing
        return merged, said

    def _takes(self, field: str, value: Any, ours: Mapping[str, Any]) -> bool:
        is_of_each_layer = isinstance(value, list) and not isinstance(ours.get(field), list)
        if field == CONTEXT and field not in ours:
            return False  # a model that counts no positions, of which the converter writes some number
        return field not in NOT_TAKEN and not is_of_each_layer and (self.is_whole or field != TIE_FLAG)


def open_reader(path: Path) -> Any:
    """gguf's own reader, as transformers uses it, without the tokenizer's lists."""
    from gguf import GGUFReader

    with mapped_plainly():
        reader = GGUFReader(path)
    for key in [key for key in reader.fields if key.startswith("tokenizer.")]:
        del reader.fields[key]
    return reader


_readings: "WeakKeyDictionary[Checkpoint, TheirReading]" = WeakKeyDictionary()


def read_by_transformers(checkpoint: GGUFCheckpoint) -> TheirReading:
    """transformers' reading of a GGUF checkpoint, made once."""
    if checkpoint not in _readings:
        _readings[checkpoint] = TheirReading(checkpoint.path, len(checkpoint.weight_files()) == 1)
    return _readings[checkpoint]


class TheirTensors(Checkpoint):
    """The parameters of a transformers model, each of what transformers' own table of names and its own rewriting make
    of a GGUF file's tensors; every one is read when it is asked for."""

    def __init__(self, model: Any, reading: TheirReading) -> None:
        """Raises KeyError with a parameter that transformers finds no tensor for."""
        import gguf
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        self.path, self.source, self.config = reading.path, reading.path.name, dict(reading.config or {})
        stored = {tensor.name: tensor for tensor in reading.reader.tensors}
        architecture = bytes(reading.reader.fields["general.architecture"].parts[-1]).decode()
        self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=self.config)
        if reading.names is None:
            layers, table = model.config.num_hidden_layers, functools.cache(gguf.get_tensor_name_map)
            with patch.object(gguf, "get_tensor_name_map", table):  # else it is made anew for each module: seconds
                reading.names = get_gguf_hf_weights_map(model, self._processor, architecture, layers)
        self._map = reading.names
        self._made_of: dict[str, list[Any]] = {}
        for name, tensor in stored.items():
            parameter = self._map.get(name, self._map.get(name.removesuffix(".weight")))
            if parameter is not None:
                self._made_of.setdefault(parameter, []).append(tensor)
        wanted = model.state_dict()
        tied = model.get_expanded_tied_weights_keys(all_submodels=True)
        missing = sorted(name for name in wanted if name not in self._made_of and name not in tied)
        if missing:
            raise KeyError(missing[0])
        self.tensors = {
            name: TensorInfo(name, _shape(made, tuple(wanted[name].shape)), "F32", self.path.name)
            for name, made in self._made_of.items()
            if name in wanted
        }

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        made = self._made_of[name]
        if len(made) == 1 and made[0].name in TABLES:
            wanted = range(len(made[0].data)) if rows is None else rows
            for first in range(wanted.start, wanted.stop, ROWS):
                yield self._make(name, slice(first, min(first + ROWS, wanted.stop)))
            return
        whole = self._make(name).reshape(self.tensors[name].shape)
        yield whole if rows is None else whole[rows.start : rows.stop]

    def _make(self, name: str, rows: slice = slice(None)) -> Tensor:
        """One parameter, or some rows of a table, as `load_gguf_checkpoint` makes it of the file's tensors."""
        from gguf import dequantize

        parsed: dict[str, dict[str, Tensor]] = {"tensors": {}}
        for tensor in self._made_of[name]:
            weights = dequantize(tensor.data[rows], tensor.tensor_type)
            result = self._processor.process(
                weights=weights, name=tensor.name, tensor_key_mapping=self._map, parsed_parameters=parsed
            )
            if result.name is not None:
                parsed["tensors"][name] = torch.tensor(result.weights)
        return parsed["tensors"][name].float()

    def digests(self) -> dict[str, str]:
        return {}

    def eos_token_ids(self) -> list[int]:
        return []

    def write_tokenizer(self, folder: Path) -> None:
        raise CheckpointError(f"{self.place}: its tokenizer is not read here")


def _shape(made: list[Any], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """A parameter's shape; that of the one tensor that it is made of where the two do not have as many elements."""
    stored = tuple(int(size) for size in reversed(made[0].shape))
    return wanted if len(made) > 1 or prod(stored) == prod(wanted) else stored


def _alike(theirs: Any, ours: Any) -> bool:
    """Equal, a file's float32 numbers as such: ours are the shortest decimals that mean them."""
    if isinstance(theirs, float) and isinstance(ours, float | int) and not isinstance(ours, bool):
        return struct.pack("f", theirs) == struct.pack("f", ours)
    return bool(theirs == ours)


def _value_of(config: Mapping[str, Any], field: str) -> Any:
    """A field, a rotary's theta also where each kind of layer has its own: transformers reads that of full ones."""
    if field != "rope_theta" or field in config:
        return config.get(field)
    parameters = config.get("rope_parameters", {})
    return parameters.get("full_attention", parameters).get(field)


def _put(config: dict[str, Any], field: str, value: Any) -> None:
    parameters = config.get("rope_parameters")
    if field != "rope_theta" or not parameters:
        config[field] = value
    elif "full_attention" in parameters:
        config["rope_parameters"] = {**parameters, "full_attention": {**parameters["full_attention"], field: value}}
    else:
        config["rope_parameters"] = {**parameters, field: value}


def _left_out(ours: Mapping[str, Any], read: Mapping[str, Any]) -> list[str]:
    """The fields that transformers does not read and that are not what its config class has by itself."""
    from transformers import CONFIG_MAPPING

    usual = {each.name: each.default for each in fields(CONFIG_MAPPING[ours["model_type"]])}
    harmless = NOT_TAKEN.keys() - {"rope_scaling"} | {"architectures"}
    return sorted(
        field
        for field, value in ours.items()
        if field not in read and field not in harmless and not _alike(value, usual.get(field))
    )
