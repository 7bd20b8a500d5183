"""A GGUF file gives the tensors, and with its config the very model, that it was converted from."""

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_configs import CONFIGS
from gguf_files import as_stored, float16, random_model, write_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.architecture import architectures
from coreai_recipes.checkpoint.gguf.rows import is_readable
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.source import with_source

KINDS = sorted((kind for kind in GGMLQuantizationType if is_readable(kind)), key=lambda kind: kind.name)
LLAMA = CONFIGS["llama"][1]


def test_every_architecture_of_the_table_has_a_case():
    assert {architecture for architecture, _ in CONFIGS.values()} == set(architectures())


@pytest.mark.parametrize("case", CONFIGS)
def test_the_model_is_the_one_that_was_converted(case: str, tmp_path: Path):
    """Tensor by tensor as transformers saves them, experts apart where the hub has them so; then by its logits."""
    from transformers import AutoModelForCausalLM

    architecture, config = CONFIGS[case]
    model = random_model(config)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", architecture, config, model.state_dict()))
    model.save_pretrained(tmp_path / "saved")
    theirs = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(checkpoint.tensors) == set(theirs) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    ours = {name: checkpoint.read(name) for name in checkpoint.tensors}
    for name, tensor in ours.items():
        assert checkpoint.tensors[name].shape == tuple(theirs[name].shape) == tuple(tensor.shape)
        if architectures()[architecture].has_shifted_norm(name):
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2**-23)  # one unit in the last place of 1 + w
        else:
            assert torch.equal(tensor, theirs[name]), name
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, tmp_path / "ours.safetensors")
    (tmp_path / "saved" / "model.safetensors").write_bytes((tmp_path / "ours.safetensors").read_bytes())
    rebuilt = AutoConfig.for_model(**checkpoint.config)
    copy = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", config=rebuilt, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.arange(80).remainder(96)[None]
    with torch.no_grad():
        torch.testing.assert_close(copy.eval()(tokens).logits, model(tokens).logits, rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CONFIGS)
def test_our_decoder_gives_the_logits_of_the_model_that_was_converted(case: str, tmp_path: Path):
    from coreai_recipes import build_decoder
    from coreai_recipes.decoder.filling import bind_weights, fill_from
    from coreai_recipes.planning.authoring import new_recipe

    architecture, config = CONFIGS[case]
    model = random_model(config)
    path = write_gguf(tmp_path / "model.gguf", architecture, config, model.state_dict())
    decoder = build_decoder(new_recipe(path).recipe)
    fill_from(decoder, bind_weights(decoder, GGUFCheckpoint(path)))
    tokens = torch.arange(80).remainder(96)[None]
    with torch.no_grad():
        ours, theirs = decoder(tokens), model(tokens).logits
    error = (ours - theirs).square().mean()
    assert 20 * theirs.abs().max().log10() - 10 * error.log10() >= 120


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "nemotron"])
def test_transformers_own_reader_gives_the_same_model(case: str, tmp_path: Path):
    """Where it knows the architecture and reads it whole: of biases, heads of a width of their own, MoE widths and
    rotary scalings it has no word, so its tensors are put into a model of the config that was converted."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    architecture, config = CONFIGS[case]
    model = random_model(config)
    named = {"general.name": case}
    path = write_gguf(tmp_path / "model.gguf", architecture, config, model.state_dict(), extra=named)
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    ours = GGUFCheckpoint(path)
    for field, value in theirs["config"].items():
        if field in ours.config and field not in ("architectures", "model_type"):
            assert ours.config[field] == pytest.approx(value), field
    compared = 0
    for name, tensor in theirs["tensors"].items():
        if name in ours.tensors:
            torch.testing.assert_close(ours.read(name), tensor.float(), rtol=0, atol=2**-23)
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("case", ["llama", "qwen2"])
def test_float16_keeps_the_bits_that_safetensors_would_have(case: str, tmp_path: Path):
    architecture, config = CONFIGS[case]
    state = random_model(config).half().state_dict()
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", architecture, config, state, float16))
    for name in checkpoint.tensors:
        ours = checkpoint.read(name)
        assert ours.dtype == (torch.float32 if state[name].ndim == 1 else torch.float16)
        assert torch.equal(ours.half(), state[name]), name


def test_bfloat16_keeps_its_bits(tmp_path: Path):
    state = random_model(LLAMA).bfloat16().state_dict()
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, state, lambda name, tensor: GGMLQuantizationType.BF16)
    checkpoint = GGUFCheckpoint(path)
    for name in checkpoint.tensors:
        ours = checkpoint.read(name)
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, state[name]), name


@pytest.mark.parametrize("case", ["qwen3moe", "gemma4-experts", "gpt-oss"])
@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.MXFP4], ids=lambda kind: kind.name)
def test_quantised_experts_are_those_that_gguf_dequantises(
    case: str, kind: GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Read whole and expert by expert; gpt-oss is released in MXFP4."""
    architecture, config = CONFIGS[case]
    config = type(config)(**{**config.to_dict(), "moe_intermediate_size": 64, "intermediate_size": 64})
    state = random_model(config).state_dict()
    written: dict[str, torch.Tensor] = {}

    def quantise(data: np.ndarray, wanted: GGMLQuantizationType) -> np.ndarray:
        return quantise_mxfp4(data) if wanted == GGMLQuantizationType.MXFP4 else quantize(data, wanted)

    quantize = gguf.quantize
    monkeypatch.setattr(gguf, "quantize", quantise)
    path = write_gguf(
        tmp_path / "model.gguf",
        architecture,
        config,
        state,
        lambda name, tensor: kind if tensor.ndim == 3 else GGMLQuantizationType.F32,
    )
    plain = GGUFCheckpoint(write_gguf(tmp_path / "plain.gguf", architecture, config, state))
    checkpoint = GGUFCheckpoint(path)
    for name in checkpoint.tensors:
        ours, exact = checkpoint.read(name), plain.read(name)
        assert ours.shape == exact.shape == checkpoint.tensors[name].shape
        assert torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), 0) > 0.98, name
        rows = range(1, len(ours) - 1)
        if rows:
            assert torch.equal(checkpoint.read(name, rows), ours[1:-1]), name
    # Bit for bit, as gguf's own reader dequantises the file.
    for tensor in gguf.GGUFReader(path).tensors:
        if "_exps.weight" in tensor.name and "down" in tensor.name:
            written[tensor.name.split(".")[1]] = torch.from_numpy(gguf.dequantize(tensor.data, kind).copy())
    for layer, theirs in written.items():
        start = f"model.layers.{layer}."
        if case == "qwen3moe":
            ours = torch.stack([checkpoint.read(f"{start}mlp.experts.{e}.down_proj.weight") for e in range(6)])
        elif case == "gpt-oss":
            ours = checkpoint.read(f"{start}mlp.experts.down_proj").transpose(1, 2)
        else:
            ours = checkpoint.read(f"{start}experts.down_proj")
        assert torch.equal(ours, theirs)


def quantise_mxfp4(values: np.ndarray) -> np.ndarray:
    """ggml's blocks: an exponent, then 16 bytes whose low halves hold the first 16 values (gguf only reads it)."""
    steps = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    blocks = values.reshape(-1, 32).astype(np.float32)
    exponent = np.floor(np.log2(np.maximum(np.abs(blocks).max(1, keepdims=True), 1e-30))) - 2
    codes = np.abs(blocks[..., None] / 2 ** exponent[..., None] - steps).argmin(-1).astype(np.uint8)
    packed = np.concatenate([(exponent + 127).astype(np.uint8), codes[:, :16] | codes[:, 16:] << 4], 1)
    return packed.reshape(*values.shape[:-1], -1)


def test_gemma4s_experts_may_lie_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The converter leaves gate and up together; llama.cpp's loader takes them apart too."""
    architecture, config = CONFIGS["gemma4-experts"]
    state = random_model(config).state_dict()
    together = GGUFCheckpoint(write_gguf(tmp_path / "together.gguf", architecture, config, state))

    def write(keep: tuple[str, ...]) -> Path:
        def apart(_: str, __: Any, name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
            if not name.endswith("experts.gate_up_proj"):
                return as_stored(architecture, config, name, tensor)
            halves = dict(zip(("gate", "up"), tensor.chunk(2, 1), strict=True))
            return [(f"blk.{name.split('.')[2]}.ffn_{half}_exps.weight", halves[half]) for half in keep]

        monkeypatch.setattr("gguf_files.as_stored", apart)
        return write_gguf(tmp_path / "apart.gguf", architecture, config, state)

    checkpoint = GGUFCheckpoint(write(("gate", "up")))
    for name in together.tensors:
        assert torch.equal(checkpoint.read(name), together.read(name)), name
    for there, missing in (("gate", "up"), ("up", "gate")):
        with pytest.raises(
            CheckpointError, match=rf"has blk.0.ffn_{there}_exps.weight, but no blk.0.ffn_{missing}_exps"
        ):
            GGUFCheckpoint(write((there,)))


def write_one_tensor(path: Path, stored: str, raw: np.ndarray, kind: GGMLQuantizationType) -> Path:
    """A one-layer Llama with 256 wide rows, all of whose other tensors are left out."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a"])
    writer.add_tensor("token_embd.weight", np.zeros((1, 256), np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(256, np.float32))
    writer.add_tensor(stored, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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


def test_a_split_file_reads_like_a_whole_one(tmp_path: Path):
    state = random_model(LLAMA).state_dict()
    whole = GGUFCheckpoint(write_gguf(tmp_path / "whole.gguf", "llama", LLAMA, state))
    parts = split_gguf(tmp_path / "whole.gguf", tmp_path / "part.gguf")
    checkpoint = GGUFCheckpoint(parts[0])
    assert checkpoint.config == whole.config
    assert set(checkpoint.digests()) == {part.name for part in parts}
    assert set(checkpoint.tensors) == set(state)
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name), state[name])
    with pytest.raises(CheckpointError, match=r"is not the first of 3 parts; give part-00001-of-00003.gguf"):
        GGUFCheckpoint(parts[1])
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"part-00003-of-00003.gguf: is missing: part-00001-of-00003.gguf has 3"):
        GGUFCheckpoint(parts[0])


def test_a_thousand_parts_are_many(tmp_path: Path):
    path = tmp_path / "part-00001-of-65000.gguf"
    write_gguf(path, "llama", LLAMA, random_model(LLAMA).state_dict(), extra={"split.count": 65000, "split.no": 0})
    with pytest.raises(CheckpointError, match=r"gguf: is one of 65000 parts; at most 1000 are read$"):
        GGUFCheckpoint(path)


def split_gguf(path: Path, target: Path) -> list[Path]:
    """The file in three parts, as gguf's own writer splits it."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, "llama", split_max_tensors=-(-len(reader.tensors) // 3))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob("part-*.gguf"))


def test_a_file_that_has_changed_since_it_was_opened_is_refused(tmp_path: Path):
    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, random_model(LLAMA).state_dict())
    checkpoint = GGUFCheckpoint(path)
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(CheckpointError, match=r"model.gguf: the file changed while it was open"):
        checkpoint.read("model.norm.weight")


def test_the_digest_is_that_of_the_file(tmp_path: Path):
    import hashlib

    path = write_gguf(tmp_path / "model.gguf", "llama", LLAMA, random_model(LLAMA).state_dict())
    checkpoint = GGUFCheckpoint(path)
    assert checkpoint.digests() == {"model.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert checkpoint.source == "model.gguf"
    assert {info.file for info in checkpoint.tensors.values()} == {"model.gguf"}


def test_a_tensor_that_the_architecture_does_not_have_is_refused_by_name(tmp_path: Path):
    raw = np.zeros((4, 256), np.float32)
    path = write_one_tensor(tmp_path / "model.gguf", "blk.0.ffn_gate_inp.weight", raw, GGMLQuantizationType.F32)
    with pytest.raises(CheckpointError, match=r"tensor blk.0.ffn_gate_inp.weight is unknown in the architecture llama"):
        GGUFCheckpoint(path)


def test_heads_that_do_not_fit_the_rows_are_refused(tmp_path: Path):
    raw = np.zeros((100, 256), np.float32)
    path = write_one_tensor(tmp_path / "model.gguf", "blk.0.attn_k.weight", raw, GGMLQuantizationType.F32)
    with pytest.raises(CheckpointError, match=r"blk.0.attn_k.weight has 100 rows, the metadata says 4 heads of 64"):
        GGUFCheckpoint(path)
