"""Every tensor of a folder of safetensors, in rows, shards and blocks, as safetensors itself reads it."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest
import torch
from checkpoint_files import pack, write_folder
from safetensors.torch import load_file, save_file
from safetensors_folders import copy_of

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError


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
