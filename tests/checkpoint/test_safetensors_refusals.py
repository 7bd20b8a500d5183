"""Files, indices and headers that no checkpoint has: a sentence each, before anything is read."""

import contextlib
import json
import os
import struct
from pathlib import Path

import pytest
from checkpoint_files import pack, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_folders import copy_of

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.checkpoint.safetensors_header import HeaderError, parse_header
from coreai_recipes.errors import CheckpointError

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def refusal(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsCheckpoint(path)
    for problem in caught.value.problems:
        assert problem.startswith(f"checkpoint {path}: ")
    return [problem.removeprefix(f"checkpoint {path}: ") for problem in caught.value.problems]


# Bad input: files


def test_a_missing_shard_is_named_with_what_it_holds(sharded, tmp_path):
    folder = copy_of(sharded, tmp_path)
    (folder / "model-00002-of-00004.safetensors").unlink()
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    count = sum(file == "model-00002-of-00004.safetensors" for file in index.values())
    assert refusal(folder) == [
        f"model-00002-of-00004.safetensors is missing: the index lists {count} tensors in it; download it again"
    ]


def test_a_truncated_file_is_refused_by_its_header(single, tmp_path):
    folder = copy_of(single, tmp_path)
    size = (folder / "model.safetensors").stat().st_size
    os.truncate(folder / "model.safetensors", size - 1000)
    (problem,) = refusal(folder)
    assert problem.startswith("model.safetensors: was truncated: its tensors need ")
    os.truncate(folder / "model.safetensors", 100)
    (problem,) = refusal(folder)
    assert problem.endswith("and the file has 100: it is not a safetensors file, or it was truncated")
    os.truncate(folder / "model.safetensors", 5)
    assert refusal(folder) == ["model.safetensors: is 5 bytes long, too short for a safetensors header"]


def test_a_file_that_shrinks_while_it_is_read_ends_early(single, tmp_path):
    folder = copy_of(single, tmp_path)
    ours = SafetensorsCheckpoint(folder, block_bytes=96)
    blocks = ours.blocks("model.norm.weight")
    os.truncate(folder / "model.safetensors", 3000)
    with pytest.raises(CheckpointError, match=r"model.safetensors changed after its header was read; start again"):
        next(blocks)
    folder = copy_of(single, tmp_path / "again")
    ours = SafetensorsCheckpoint(folder, block_bytes=96)
    blocks = ours.blocks("model.embed_tokens.weight")
    next(blocks)
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model.safetensors ends early; it was truncated while it was read"):
        list(blocks)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pack({"a": F32}, bytes(24), 10**6), "states that its header is 1000000 bytes long, and the file has"),
        (pack({"a": F32}, bytes(24), 2**63), "states that its header is 9223372036854775808 bytes long"),
        (pack({"a": F32}, bytes(24), 20), "has a header that is not JSON"),
        (pack([1], b""), "has a header that is not a JSON object"),
        ((6).to_bytes(8, "little") + b"\xff\xfe\xfd{}}", "has a header that is not JSON"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "has a header that is not JSON: it is nested too deeply"),
        ((21).to_bytes(8, "little") + b'{"a": null, "a": {}} ', "has a header in which 'a' occurs twice"),
        (pack({"a\x1b[2J": F32}, bytes(24)), r"has a header with the unprintable name 'a\x1b[2J'"),
        (pack({"a": {"dtype": "F32"}}, b""), "has a header in which a lacks dtype, shape or data_offsets"),
        (pack({"a": F32 | {"dtype": "Q4_K"}}, bytes(24)), "has a header in which a has the unknown dtype 'Q4_K'"),
        (pack({"a": F32 | {"dtype": []}}, bytes(24)), "has a header in which a has the unknown dtype []"),
        (pack({"a": F32 | {"shape": [2, -3]}}, bytes(24)), "has a header in which a has the shape [2, -3]"),
        (pack({"a": F32 | {"shape": [True, 6]}}, bytes(24)), "has a header in which a has the shape [True, 6]"),
        (pack({"a": F32 | {"shape": 6}}, bytes(24)), "has a header in which a has the shape 6"),
        (
            pack({"a": F32 | {"data_offsets": [24, 0]}}, bytes(24)),
            "has a header in which a has the data_offsets [24, 0]",
        ),
        (
            pack({"a": F32 | {"shape": [2, 4]}}, bytes(24)),
            "has a header in which a spans 24 bytes, but F32 (2, 4) takes 32",
        ),
        (
            pack({"a": F32, "b": F32 | {"data_offsets": [20, 44]}}, bytes(44)),
            "has a header in which b overlaps a: it starts at 20, not 24",
        ),
        (
            pack({"a": F32, "b": F32 | {"data_offsets": [30, 54]}}, bytes(54)),
            "has a header in which b leaves a gap after a: it starts at 30, not 24",
        ),
        (
            pack({"a": F32}, bytes(20)),
            "was truncated: its tensors need 24 bytes after the header, but only 20 are there",
        ),
        (pack({"a": F32}, bytes(30)), "has 6 bytes after its last tensor that belong to no tensor"),
    ],
)
def test_a_wrong_header_is_one_sentence(tmp_path, content, message):
    (problem,) = refusal(write_folder(tmp_path / "model", content))
    assert problem.startswith(f"model.safetensors: {message}")


def test_a_header_longer_than_the_limit_is_not_read(tmp_path):
    folder = write_folder(tmp_path / "model", (100_000_001).to_bytes(8, "little"))
    os.truncate(folder / "model.safetensors", 200_000_000)
    (problem,) = refusal(folder)
    assert problem.endswith("states that its header is 100000001 bytes long; at most 100000000 are read")


@given(st.binary(max_size=200), st.integers(0, 100))
def test_random_bytes_give_a_header_error_or_entries(header, data_bytes):
    with contextlib.suppress(HeaderError):
        parse_header(header, data_bytes)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 2**70), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 100), min_size=2, max_size=2) | JSON_VALUES,
    }
)


HEADERS = st.dictionaries(st.text(max_size=5), ENTRIES | JSON_VALUES, max_size=4)


@given(HEADERS, st.binary(max_size=50), st.integers(-3, 3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_of_random_json_gives_a_checkpoint_error_or_a_checkpoint(tmp_path, entries, data, wrong):
    content = pack(entries, data)
    length = max(0, int.from_bytes(content[:8], "little") + wrong)
    folder = write_folder(tmp_path / "model", length.to_bytes(8, "little") + content[8:])
    try:
        ours = SafetensorsCheckpoint(folder)
    except CheckpointError as error:
        for problem in error.problems:
            problem.encode()
    else:
        assert all(ours.why_unreadable(name) or ours.read(name) is not None for name in ours.tensors)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "a/../../b.safetensors", "..\\b"])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.safetensors").write_bytes(pack({"a": F32}, bytes(24)))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert refusal(folder) == [f"model.safetensors.index.json names {name!r}, a path that leaves the folder"]


def test_an_index_of_pickles_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.bin"}}))
    assert refusal(tmp_path) == ["model.safetensors.index.json names 'model.bin', which is not a safetensors file"]


def test_an_index_and_its_shards_must_agree(tmp_path):
    folder = write_folder(tmp_path / "model", pack({"a": F32}, bytes(24)), "model-00001-of-00002.safetensors")
    write_folder(folder, pack({"b": F32, "twice": F32 | {"data_offsets": [24, 48]}}, bytes(48)), "second.safetensors")
    write_folder(folder, pack({"c": F32, "twice": F32 | {"data_offsets": [24, 48]}}, bytes(48)), "third.safetensors")
    index = {"a": "model-00001-of-00002.safetensors", "x": "second.safetensors", "c": "third.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert refusal(folder) == [
        "twice is in second.safetensors and in third.safetensors, and the index names neither",
        "x is not in second.safetensors, where the index places it",
    ]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "model.safetensors.index.json is not JSON: "),
        ("[]", "model.safetensors.index.json is not a JSON object"),
        ("{}", "model.safetensors.index.json has no weight_map, which locates each tensor"),
        ('{"weight_map": {"a": 3}}', "model.safetensors.index.json names no file for 'a'"),
    ],
)
def test_a_wrong_index_is_one_sentence(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    (problem,) = refusal(tmp_path)
    assert problem.startswith(message)


def test_pickles_are_refused_with_the_reason(tmp_path):
    reason = (
        "a pickle runs its author's code when it is loaded; convert it to safetensors on a machine where you trust it"
    )
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (problem,) = refusal(tmp_path)
    assert problem.startswith(f"holds only pickles (pytorch_model.bin), all refused: {reason}")
    for name in ("pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
        (problem,) = refusal(tmp_path / name)
        assert problem.startswith(f"is a pickle, and pickles are refused: {reason}")


def test_a_folder_without_weights_config_or_index_says_so(single, sharded, tmp_path):
    assert refusal(tmp_path) == ["holds no weights: neither a .safetensors file nor a .gguf file"]
    folder = copy_of(single, tmp_path)
    (folder / "config.json").unlink()
    assert refusal(folder) == ["has no config.json; copy it from the source of the weights"]
    (folder / "config.json").write_text("{no")
    (problem,) = refusal(folder)
    assert problem.startswith("config.json is not JSON: ")
    folder = copy_of(sharded, tmp_path / "again")
    assert refusal(folder / "model-00001-of-00004.safetensors") == [
        "is one of 4 shards; give the folder that holds all of them"
    ]
    (folder / "model.safetensors.index.json").unlink()
    (problem,) = refusal(folder)
    assert problem.endswith(
        "but no model.safetensors.index.json, which lists the tensors of each shard; download it too"
    )


def test_every_problem_of_a_folder_is_reported_at_once(sharded, tmp_path):
    folder = copy_of(sharded, tmp_path)
    (folder / "model-00002-of-00004.safetensors").unlink()
    os.truncate(folder / "model-00003-of-00004.safetensors", 3)
    (folder / "config.json").unlink()
    assert len(refusal(folder)) == 3


@pytest.mark.parametrize(
    ("dtype", "size", "message"),
    [
        ("I16", 12, "is stored as I16: a weight is BF16, F16, F32 or F64"),
        ("U8", 6, "is stored as U8: a weight is BF16, F16, F32 or F64"),
        ("F8_E5M2", 6, "is stored as F8_E5M2, whose scales are not applied: use the release in BF16"),
        (
            "F8_E4M3",
            6,
            "is stored as F8_E4M3, and no a_scale_inv is here that fits it: use the release in BF16",
        ),
    ],
)
def test_a_dtype_that_is_no_weight_is_refused_when_asked_for(tmp_path, dtype, size, message):
    entry = {"dtype": dtype, "shape": [2, 3], "data_offsets": [0, size]}
    ours = SafetensorsCheckpoint(write_folder(tmp_path, pack({"a": entry}, bytes(size))))
    assert ours.why_unreadable("a") == message
    with pytest.raises(CheckpointError, match=f": a {message}"):
        ours.blocks("a")
    with pytest.raises(CheckpointError, match="has no tensor b"):
        ours.blocks("b")


def test_a_list_of_tokens_is_read_as_whole_numbers_and_is_still_no_weight(tmp_path):
    entry = {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]}
    ours = SafetensorsCheckpoint(write_folder(tmp_path, pack({"a": entry}, struct.pack("<3q", 5, -7, 2**40))))
    assert ours.why_unreadable("a") == "is stored as I64: a weight is BF16, F16, F32 or F64"
    (block,) = ours.blocks("a")
    assert block.tolist() == [5, -7, 2**40]
