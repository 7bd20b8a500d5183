"""What no real checkpoint holds is refused before it takes memory or time; what the largest hold is read in seconds."""

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import growth, pack, write_folder

from coreai_recipes.checkpoint.open import open_checkpoint, open_config
from coreai_recipes.checkpoint.safetensors import read_index
from coreai_recipes.checkpoint.safetensors_header import MOST_TENSORS, HeaderError, parse_header
from coreai_recipes.checkpoint.settings import read_settings
from coreai_recipes.errors import CheckpointError

DEEP = "it is nested too deeply: more than 100 levels"


def entries(count: int) -> dict[str, Any]:
    """Headers of so many scalars, side by side."""
    return {
        f"model.layers.{index}.mlp.experts.{index % 384}.up_proj.weight": {
            "dtype": "F32",
            "shape": [1, 1],
            "data_offsets": [4 * index, 4 * index + 4],
        }
        for index in range(count)
    }


@contextmanager
def less_than(mebibytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_tensors_of_safetensors_take_time_by_their_number(tmp_path: Path) -> None:
    for count in (12_500, 100_000):
        write_folder(tmp_path / str(count), pack(entries(count), bytes(4 * count)))
    assert growth(lambda count: open_checkpoint(tmp_path / str(count)), 100_000) < 40
    assert len(open_checkpoint(tmp_path / "100000").tensors) == 100_000


def write_shards(folder: Path, count: int) -> None:
    """A checkpoint of so many tensors in four files, with its index."""
    shards = 4
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        part = {f"{shard}.{name}": entry for name, entry in entries(count // shards).items()}
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        write_folder(folder, pack(part, bytes(count)), file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_as_long_as_kimi_k2s_takes_time_by_its_length(tmp_path: Path) -> None:
    for count in (17_500, 140_000):
        write_shards(tmp_path / str(count), count)
    assert growth(lambda count: open_checkpoint(tmp_path / str(count)), 140_000) < 40
    assert len(open_checkpoint(tmp_path / "140000").tensors) == 140_000


@pytest.mark.parametrize(
    "header",
    [
        json.dumps(entries(MOST_TENSORS + 1)).encode(),
        b'{"__metadata__": [' + b"[]," * (12 * MOST_TENSORS) + b"[]]}",
    ],
    ids=["tensors", "values"],
)
def test_a_header_with_more_tensors_than_any_file_has_is_refused_before_it_is_parsed(header: bytes) -> None:
    with less_than(2), pytest.raises(HeaderError, match=r"with more than 131072 tensors, or the values of as many"):
        parse_header(header, 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2**62] * 32, "takes more than any file has"),  # used to be an OverflowError: too large for a float
        ([2**40, 2**40], "takes more than any file has"),
        ([2**30, 2**30], "takes 4611686018427387904"),
    ],
)
def test_a_shape_whose_product_overflows_is_a_sentence(shape: list[int], message: str) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 24]}}).encode()
    with pytest.raises(HeaderError) as caught:
        parse_header(header, 24)
    assert str(caught.value).endswith(message)
    assert len(str(caught.value)) < 250


def test_a_name_of_a_megabyte_is_not_shown_whole() -> None:
    header = json.dumps({"a" * (1 << 20): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    with pytest.raises(HeaderError, match=r"has a header with a name of 1048576 characters, a{80}\.\.\.$"):
        parse_header(header, 4)


def test_shards_that_together_hold_more_than_any_model_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the index names may be few, and the files hold any number beside."""
    monkeypatch.setattr("coreai_recipes.checkpoint.safetensors.MOST_INDEXED", 25)
    for shard in range(3):
        part = {f"{shard}.{name}": entry for name, entry in entries(10).items()}
        write_folder(tmp_path / "model", pack(part, bytes(40)), f"model-{shard + 1:05}-of-00003.safetensors")
    files = {str(shard): f"model-{shard + 1:05}-of-00003.safetensors" for shard in range(3)}
    write_index(tmp_path / "model", json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match=r"model: its files hold more than 25 tensors$"):
        open_checkpoint(tmp_path / "model")


def write_index(folder: Path, content: str) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(content)
    return path


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    """Readers disagree on which of the two counts, and the last used to win here."""
    path = write_index(tmp_path, '{"weight_map": {"a": "one.safetensors", "b": "x", "a": "two.safetensors"}}')
    with pytest.raises(CheckpointError) as caught:
        read_index(path, "here")
    assert caught.value.problems == ("here: model.safetensors.index.json is not JSON: 'a' occurs twice",)


def test_an_index_of_more_tensors_than_any_model_has_is_refused(tmp_path: Path) -> None:
    content = json.dumps({"weight_map": dict.fromkeys(map(str, range((1 << 18) + 1)), "x")})
    with pytest.raises(CheckpointError, match=r"index.json names 262145 tensors; at most 262144 are read"):
        read_index(write_index(tmp_path, content), "here")
    many = '{"metadata": [' + "0," * 3_000_001 + "0]}"
    with less_than(32), pytest.raises(CheckpointError, match=r"index.json holds more than 3000000 values"):
        read_index(write_index(tmp_path, many), "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "' + "x" * (100 << 20) + '"}', "config.json is larger than 4 MiB"),
        ('{"a": [' + "[]," * 200_001 + "[]]}", "config.json holds more than 200000 values"),
        (json.dumps(dict.fromkeys(map(str, range(4097)))), "has 4097 fields, and no model has more than 4096"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", f"config.json is not JSON: {DEEP}"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", f"config.json is not JSON: {DEEP}"),
        ('{"a": ' + "9" * 5000 + "}", "config.json is not JSON: Exceeds the limit"),
    ],
    ids=["bytes", "values", "fields", "depth", "depth that a parser takes", "digits"],
)
def test_a_config_that_no_model_has_is_refused_before_it_takes_memory(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    del content
    with less_than(32), pytest.raises(CheckpointError) as caught:
        open_config(path)
    assert message in str(caught.value)


def test_a_config_with_a_long_list_of_modules_is_read(tmp_path: Path) -> None:
    modules = [f"model.layers.{index // 8}.mlp.experts.{index}" for index in range(50_000)]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"quantization_config": {"ignore": modules}}))
    assert len(read_settings(path, "here")["quantization_config"]["ignore"]) == 50_000
