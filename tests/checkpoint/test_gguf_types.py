"""Every type of block in a GGUF file, in rows and parts, as gguf itself dequantises it."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_blocks import LLAMA, write_one_tensor
from gguf_files import random_model, write_gguf
from safetensors.torch import load_file
from transformers import AutoConfig

from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.rows import is_readable
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.source import with_source

KINDS = sorted((kind for kind in GGMLQuantizationType if is_readable(kind)), key=lambda kind: kind.name)


def random_blocks(rows: int, width: int, kind: GGMLQuantizationType, seed: int = 0) -> np.ndarray:
    """Rows of `kind` made of random bytes: every pattern of bits is a value."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(seed).integers(0, 256, (rows, width // block * block_bytes), np.uint8)


def values_of(raw: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    with np.errstate(all="ignore"):
        if kind == GGMLQuantizationType.F64:
            return raw.view(np.float64).astype(np.float32)
        return gguf.dequantize(raw, kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_reads_as_gguf_dequantises_it(kind: GGMLQuantizationType, tmp_path: Path):
    raw = random_blocks(512, 256, kind)
    checkpoint = GGUFCheckpoint(write_one_tensor(tmp_path / "model.gguf", "blk.0.ffn_up.weight", raw, kind))
    name = "model.layers.0.mlp.up_proj.weight"
    assert checkpoint.tensors[name].dtype == kind.name
    ours = checkpoint.read(name)
    assert ours.dtype in (torch.float16, torch.bfloat16, torch.float32)
    np.testing.assert_array_equal(ours.float().numpy(), values_of(raw, kind))
    np.testing.assert_array_equal(checkpoint.read(name, range(7, 300)).float().numpy(), values_of(raw[7:300], kind))


@pytest.mark.parametrize(
    "kind", [kind for kind in GGMLQuantizationType if kind not in KINDS], ids=lambda kind: kind.name
)
def test_a_type_that_gguf_cannot_dequantise_is_refused_by_tensor(kind: GGMLQuantizationType, tmp_path: Path):
    path = write_one_tensor(tmp_path / "model.gguf", "blk.0.ffn_up.weight", random_blocks(4, 256, kind), kind)
    with pytest.raises(CheckpointError, match=rf"tensor blk.0.ffn_up.weight has type {kind.name}, which gguf cannot"):
        GGUFCheckpoint(path)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_K])
def test_rows_of_interleaved_heads_equal_those_of_the_whole(kind: GGMLQuantizationType, tmp_path: Path):
    raw = random_blocks(256, 256, kind)
    raw[:, 1] &= 0x3F  # a finite scale
    checkpoint = GGUFCheckpoint(write_one_tensor(tmp_path / "model.gguf", "blk.0.attn_q.weight", raw, kind))
    name = "model.layers.0.self_attn.q_proj.weight"
    values = torch.from_numpy(values_of(raw, kind).copy())
    whole = values.reshape(4, 32, 2, 256).swapaxes(1, 2).reshape(256, 256)  # (heads, pairs, halves, C)
    np.testing.assert_array_equal(checkpoint.read(name).float().numpy(), whole.numpy())
    for rows in (range(1), range(63, 65), range(100, 256), range(5, 250)):
        np.testing.assert_array_equal(
            checkpoint.read(name, rows).float().numpy(), whole[rows.start : rows.stop].numpy()
        )


def test_blocks_of_whole_heads_follow_one_another_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coreai_recipes.checkpoint.gguf.rows.BLOCK_BYTES", 4 * 64 * 30)  # 30 rows: one head of 24
    state = random_model(LLAMA).state_dict()
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", "llama", LLAMA, state))
    name = "model.layers.1.self_attn.q_proj.weight"
    blocks = [block.clone() for block in checkpoint.blocks(name, range(10, 90))]
    assert [len(block) for block in blocks] == [14, 24, 24, 18]
    assert torch.equal(torch.cat(blocks), state[name][10:90])


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0])
def test_a_quantised_vector_can_be_read_in_parts(kind: GGMLQuantizationType, tmp_path: Path):
    raw = random_blocks(1, 256, kind)[0]
    path = write_one_tensor(tmp_path / "model.gguf", "blk.0.ffn_norm.weight", raw, kind)
    name = "model.layers.0.post_attention_layernorm.weight"
    whole = values_of(raw[None], kind)[0]
    np.testing.assert_array_equal(GGUFCheckpoint(path).read(name).numpy(), whole)
    np.testing.assert_array_equal(GGUFCheckpoint(path).read(name, range(33, 97)).numpy(), whole[33:97])


def test_a_type_that_no_package_holds_to_the_bit_is_named(tmp_path: Path):
    """Q4_1, of many files, has an offset that is no integer: `compress.default: source` says so."""
    tiny = Path(__file__).parents[1] / "checkpoints/tiny-llama"

    def type_of(name: str, tensor: torch.Tensor) -> GGMLQuantizationType:
        if tensor.ndim == 1 or tensor.shape[1] % 32:
            return GGMLQuantizationType.F32
        return GGMLQuantizationType.Q4_1 if ".k_proj." in name else GGMLQuantizationType.Q8_0

    config, state = AutoConfig.from_pretrained(tiny), load_file(tiny / "model.safetensors")
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", "llama", config, state, type_of))
    _, notes = with_source(load_recipe("tiny-llama", ["compress.default=source"]), {"model": checkpoint})
    assert notes[0].endswith("; the others are float16: a package cannot hold Q4_1 to the bit")


def test_a_block_of_one_tensor_survives_a_block_of_another(tmp_path: Path):
    state = random_model(LLAMA).state_dict()
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", "llama", LLAMA, state))
    gate, up = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))
    for ours, theirs in zip(checkpoint.blocks(gate), checkpoint.blocks(up), strict=True):
        assert torch.equal(ours, state[gate])
        assert torch.equal(theirs, state[up])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
def test_memory_stays_flat_over_a_large_tensor(tmp_path: Path):
    width, rows = 1024, 65536  # 128 MiB in float16
    raw = np.memmap(tmp_path / "raw", np.uint8, "w+", shape=(rows, width * 2))  # zeros that take no space on disk
    path = write_one_tensor(tmp_path / "model.gguf", "blk.0.ffn_down.weight", raw, GGMLQuantizationType.F16)
    del raw
    checkpoint = GGUFCheckpoint(path)
    before = resident_bytes()
    most = 0
    count = 0
    for block in checkpoint.blocks("model.layers.0.mlp.down_proj.weight"):
        count += len(block)
        most = max(most, resident_bytes())
    assert count == rows
    assert most - before < 16 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
