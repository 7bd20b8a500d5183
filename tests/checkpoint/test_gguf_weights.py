"""A GGUF file gives the tensors, and with its config the very model, that it was converted from."""

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf_blocks import LLAMA, write_one_tensor
from gguf_configs import CONFIGS
from gguf_files import as_stored, float16, random_model, write_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.architecture import architectures
from coreai_recipes.errors import CheckpointError


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
        layout = architectures()[architecture].layout_of(name)
        if layout.logarithm:  # exp and log each round once, exp relative to itself
            assert ((tensor - theirs[name]).abs() <= 2**-23 * (1 + theirs[name].abs())).all(), name
        elif layout.shifted:
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


@pytest.mark.parametrize(
    "case", ["llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "nemotron", "mamba"]
)
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
