import contextlib
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import pack, save_model, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.checkpoint.safetensors_header import HeaderError, parse_header
from coreai_recipes.checkpoint.settings import check_token_ids
from coreai_recipes.errors import CheckpointError

F32 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "model"
    save_model(folder, dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    save_model(folder, shard="60KB")
    return folder


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refusal(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsCheckpoint(path)
    for problem in caught.value.problems:
        assert problem.startswith(f"checkpoint {path}: ")
    return [problem.removeprefix(f"checkpoint {path}: ") for problem in caught.value.problems]


@pytest.mark.parametrize("block_bytes", [1, 200, 8 << 20])
def test_every_tensor_equals_what_safetensors_reads(single, block_bytes):
    ours = SafetensorsCheckpoint(single, block_bytes=block_bytes)
    theirs = load_file(single / "model.safetensors")
    assert set(ours.tensors) == set(theirs)
    for name, tensor in theirs.items():
        assert ours.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(ours.read(name), tensor)
        assert ours.read(name).dtype == torch.bfloat16


def test_shards_are_read_through_their_index(sharded):
    ours = SafetensorsCheckpoint(sharded)
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    theirs = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert set(ours.tensors) == set(theirs)
    assert all(torch.equal(ours.read(name), tensor) for name, tensor in theirs.items())
    assert ours.config["model_type"] == "llama"
    assert ours.source == "model"


def test_a_run_of_rows_is_read_alone(single):
    ours = SafetensorsCheckpoint(single, block_bytes=500)
    whole = ours.read("model.embed_tokens.weight")
    assert torch.equal(ours.read("model.embed_tokens.weight", range(17, 61)), whole[17:61])
    assert ours.read("model.embed_tokens.weight", range(5, 5)).shape == (0, 48)
    with pytest.raises(ValueError, match="not a range of its rows"):
        ours.blocks("model.embed_tokens.weight", range(90, 100))


def test_blocks_hold_whole_rows_and_at_least_one(single):
    sizes = [len(block) for block in SafetensorsCheckpoint(single, block_bytes=200).blocks("model.embed_tokens.weight")]
    assert sizes == [2] * 49 + [1]
    sizes = [len(block) for block in SafetensorsCheckpoint(single, block_bytes=1).blocks("model.embed_tokens.weight")]
    assert sizes == [1] * 99


def test_two_readers_at_once_do_not_share_a_buffer(single):
    ours = SafetensorsCheckpoint(single, block_bytes=96)
    first, second = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    pairs = zip(ours.blocks(first), ours.blocks(second), strict=True)
    left, right = zip(*((a.clone(), b.clone()) for a, b in pairs), strict=True)
    assert torch.equal(torch.cat(left), ours.read(first))
    assert torch.equal(torch.cat(right), ours.read(second))


def test_one_reader_after_another_uses_the_same_buffer(single):
    ours = SafetensorsCheckpoint(single)
    addresses = {block.data_ptr() for name in ours.tensors for block in ours.blocks(name)}
    assert len(addresses) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scalars_empty_tensors_and_every_float_dtype_are_read(tmp_path, dtype):
    theirs = {"scalar": torch.tensor(1.5, dtype=dtype), "none": torch.empty(0, 4, dtype=dtype)}
    theirs["cube"] = torch.arange(24).view(2, 3, 4).to(dtype)
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    ours = SafetensorsCheckpoint(tmp_path, block_bytes=3)
    for name, tensor in theirs.items():
        assert torch.equal(ours.read(name), tensor)
        assert ours.read(name).dtype == dtype


def test_a_file_with_its_config_beside_it_is_a_checkpoint(single):
    ours = SafetensorsCheckpoint(single / "model.safetensors")
    assert ours.source == "model.safetensors"
    assert ours.config["hidden_size"] == 48


def test_a_snapshot_of_symbolic_links_is_read(single, tmp_path):
    for file in single.iterdir():
        (tmp_path / file.name).symlink_to(file)
    ours = SafetensorsCheckpoint(tmp_path, source="org/name@abc")
    assert ours.source == "org/name@abc"
    assert ours.place == "checkpoint org/name@abc"
    assert torch.equal(ours.read("model.norm.weight"), SafetensorsCheckpoint(single).read("model.norm.weight"))


def test_digests_are_those_of_the_files_and_are_taken_once_in_a_thread(sharded):
    ours = SafetensorsCheckpoint(sharded)
    future = ours.start_digests()
    assert ours.start_digests() is future
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sharded.glob("*.safetensors")}
    assert future.result() == ours.digests() == expected
    assert list(ours.digests()) == sorted(expected)


def test_a_digest_that_fails_is_raised_where_it_is_collected(sharded, tmp_path):
    folder = copy_of(sharded, tmp_path)
    ours = SafetensorsCheckpoint(folder)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="cannot be read: No such file or directory"):
        ours.start_digests().result()


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


# Settings and tokenizer


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 5, 7]}, {"eos_token_id": 2}, [7, 5]),
        ({"eos_token_id": None}, {"eos_token_id": 2}, [2]),
        (None, {"eos_token_id": 2}, [2]),
        (None, {"text_config": {"eos_token_id": [1, 106]}}, [1, 106]),
        (None, {}, []),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(tmp_path, generation, config, expected):
    write_folder(tmp_path, pack({}, b""))
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert SafetensorsCheckpoint(tmp_path).eos_token_ids() == expected


def test_an_end_token_that_is_no_id_is_refused(tmp_path):
    write_folder(tmp_path, pack({}, b""))
    (tmp_path / "config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(CheckpointError, match=r"eos_token_id is \['</s>'\], neither a token id nor a list of them"):
        SafetensorsCheckpoint(tmp_path).eos_token_ids()


def test_an_end_token_that_no_tokenizer_has_is_no_id() -> None:
    """transformers' tokenizer raised OverflowError, at the end of a build."""
    with pytest.raises(CheckpointError, match=r"eos_token_id is 99999999999999999999, neither a token id nor a list"):
        check_token_ids(99999999999999999999, "here")


def test_the_tokenizer_is_copied_as_the_checkpoint_has_it(tmp_path):
    source, target = write_folder(tmp_path / "source", pack({}, b"")), tmp_path / "target"
    target.mkdir()
    files = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    contents = dict.fromkeys([*files, "README.md", "tokenizer.py"], "{}")
    contents["tokenizer.json"] = '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}  '
    contents["additional_chat_templates/rag.jinja"] = "rag"
    (source / "additional_chat_templates").mkdir()
    for name, content in contents.items():
        (source / name).write_text(content)
    SafetensorsCheckpoint(source).write_tokenizer(target)
    copied = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*") if path.is_file()}
    assert copied.keys() == {*files, "additional_chat_templates/rag.jinja", "tokens.json"}
    assert {name: text for name, text in copied.items() if name != "tokens.json"} == {
        name: contents[name] for name in copied if name != "tokens.json"
    }


def test_a_slow_tokenizer_is_converted(tmp_path):
    source, target = write_folder(tmp_path / "source", pack({}, b"")), tmp_path / "target"
    target.mkdir()
    words = ["<|endoftext|>", "a", "b", "ab", "Ġ", "Ġab"]
    (source / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    SafetensorsCheckpoint(source).write_tokenizer(target)
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(target / "tokenizer.json")).encode("ab ab").ids == [3, 5]


def test_a_checkpoint_without_a_tokenizer_says_so(tmp_path):
    ours = SafetensorsCheckpoint(write_folder(tmp_path, pack({}, b"")))
    with pytest.raises(CheckpointError, match="has no tokenizer: neither tokenizer"):
        ours.write_tokenizer(tmp_path)


STREAM = """
import resource, sys
import torch
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.storage.float16 import to_float16
checkpoint = SafetensorsCheckpoint(sys.argv[1])
out = torch.empty(4 << 20, dtype=torch.float16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
future = checkpoint.start_digests()
for name in checkpoint.tensors:
    for block in checkpoint.blocks(name):
        to_float16(block, name, out[: block.numel()])
future.result()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_streaming_300_mb_takes_less_than_60_mb(tmp_path):
    count = 150_000_000
    header = {"a": {"dtype": "BF16", "shape": [count // 1000, 1000], "data_offsets": [0, 2 * count]}}
    folder = write_folder(tmp_path, pack(header, b""))
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + 2 * count)
    run = subprocess.run([sys.executable, "-c", STREAM, folder], capture_output=True, text=True, check=True)
    grown = int(run.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 60e6
