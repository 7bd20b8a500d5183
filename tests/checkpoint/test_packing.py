"""Checkpoints as they are released, in MXFP4 and in FP8, against what transformers makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save_model
from safetensors.torch import load_file, save_file

from coreai_recipes.checkpoint.base import Grid
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Compress
from coreai_recipes.storage.reading import stored_weights
from coreai_recipes.storage.source import with_source
from coreai_recipes.verification import run_stages


def repack(folder: Path, change: Any, **config: Any) -> SafetensorsCheckpoint:
    """A saved model with other tensors and fields more in its config.json."""
    tensors = {
        key: value
        for name, stored in load_file(folder / "model.safetensors").items()
        for key, value in change(name, stored)
    }
    save_file(tensors, folder / "model.safetensors")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    return SafetensorsCheckpoint(folder)


def in_mxfp4(name: str, stored: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Experts as random bytes of MXFP4, every value of a half and exponents between 2**-9 and 2**-2."""
    if not name.endswith(("gate_up_proj", "down_proj")) or stored.dim() != 3:
        return [(name, stored)]
    experts, columns, rows = stored.shape
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
    return [
        (f"{name}_blocks", blocks),
        (f"{name}_scales", torch.randint(118, 126, blocks.shape[:3], dtype=torch.uint8)),
    ]


def in_fp8(scale_of: Any) -> Any:
    """Matrices of layers in FP8, with the scales that `scale_of` gives for a shape; other tensors as they are."""

    def change(name: str, stored: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        if stored.dim() != 2 or ".layers." not in name:
            return [(name, stored)]
        small = (torch.randn(stored.shape) * 40).to(torch.float8_e4m3fn)
        return [
            (name, small),
            (f"{name}_scale_inv", scale_of(small)),
            (name.replace("weight", "activation_scale"), torch.ones(())),
        ]

    return change


@pytest.fixture
def gpt_oss(tmp_path: Path) -> SafetensorsCheckpoint:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_local_experts": 3, "num_experts_per_tok": 3}
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    save_model(
        tmp_path, "gpt_oss", dtype="bfloat16", layer_types=types, sliding_window=7, tie_word_embeddings=False, **sizes
    )
    return repack(tmp_path, in_mxfp4, quantization_config={"quant_method": "mxfp4"})


def test_mxfp4_is_what_transformers_dequantises_bit_for_bit(gpt_oss):
    from transformers import AutoModelForCausalLM, Mxfp4Config

    theirs = AutoModelForCausalLM.from_pretrained(gpt_oss.path, quantization_config=Mxfp4Config(dequantize=True))
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "experts" in name}
    assert len(state) == 12
    for name, tensor in state.items():
        ours = gpt_oss.read(name)
        assert gpt_oss.tensors[name].shape == tuple(ours.shape)
        assert ours.dtype == tensor.dtype
        assert torch.equal(ours, tensor), name
    name = "model.layers.1.mlp.experts.down_proj"
    assert torch.equal(gpt_oss.read(name, range(1, 3)), state[name][1:])


def test_a_recipe_of_a_released_gpt_oss_is_transformers_model(gpt_oss):
    recipe = recipe_from_config(gpt_oss.config, "small").recipe
    report = run_stages(recipe, gpt_oss, None, stages=["rotary", "torch"])
    assert report.passed, report.to_json()


def test_mxfp4_as_the_checkpoint_has_it_is_int8_of_twice_the_value_to_the_bit(gpt_oss):
    recipe = recipe_from_config(gpt_oss.config, "small").recipe
    recipe = recipe.model_copy(update={"compress": Compress.model_validate({"default": "source"})})
    recipe, _ = with_source(recipe, {"model": gpt_oss})
    assert [rule.model_dump(exclude_none=True) for rule in recipe.compress.rules] == [
        {"match": f"layers.*.mlp.{part}", "kind": "int8", "block": 32} for part in ("gate_up", "down")
    ]
    plain, stored = bind_weights(build_decoder(recipe), gpt_oss), stored_weights(recipe, gpt_oss)
    experts = [name for name in plain if plain[name].read().dim() == 3]
    assert len(experts) == 6
    for name in experts:
        assert torch.equal(stored[name].read(), plain[name].read().half().float()), name


@pytest.mark.parametrize(("exponent", "held"), [(127 - 23, True), (127 - 24, False), (127 + 13, True), (141, False)])
def test_exponents_of_mxfp4_beyond_float16_make_no_grid(gpt_oss, exponent, held):
    def change(name: str, stored: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        return [(name, torch.full_like(stored, exponent) if name.endswith("down_proj_scales") else stored)]

    grid = repack(gpt_oss.path, change).grid("model.layers.0.mlp.experts.down_proj")
    assert grid == (Grid(8, 32, transposed=True) if held else None)


# 48 rows are one and a half blocks of 32, as DeepSeek's 576 are four and a half of 128
@pytest.mark.parametrize(
    ("block", "scale_of"),
    [
        ([32, 16], lambda w: torch.rand(-(-w.shape[0] // 32), -(-w.shape[1] // 16)) / 100),
        ([128, 128], lambda w: (torch.rand(1, 1) / 100).bfloat16()),
        (None, lambda w: torch.rand(()) / 100),
        (None, lambda w: torch.rand(1) / 100),
    ],
    ids=["blocks", "one block", "a scalar", "one number"],
)
def test_fp8_times_its_scales(tmp_path, block, scale_of):
    save_model(tmp_path, "qwen3")
    settings = {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "dynamic"}
    ours = repack(tmp_path, in_fp8(scale_of), quantization_config=settings)
    stored = load_file(tmp_path / "model.safetensors")
    names = [name.removesuffix("_scale_inv") for name in stored if name.endswith("_scale_inv")]
    assert len(names) == 3 * 7
    for name in names:
        small, scale = stored[name], stored[f"{name}_scale_inv"].float()
        if scale.numel() > 1:
            scale = torch.kron(scale, torch.ones(*block))[: small.shape[0], : small.shape[1]]
        assert torch.equal(ours.read(name), small.float() * scale), name
    part = ours.read(names[0], range(3, 35))
    assert torch.equal(part, ours.read(names[0])[3:35])
    recipe = recipe_from_config(ours.config, "small").recipe
    assert run_stages(recipe, ours, None, stages=["torch"]).passed


def test_fp8_is_what_transformers_dequantises(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    save_model(tmp_path, "qwen3", hidden_size=64, head_dim=32, intermediate_size=96)
    ours = repack(
        tmp_path,
        in_fp8(lambda w: torch.rand(w.shape[0] // 32, w.shape[1] // 16) / 100),
        quantization_config={"quant_method": "fp8", "weight_block_size": [32, 16]},
    )
    stored = load_file(tmp_path / "model.safetensors")
    for name in (name for name in stored if f"{name}_scale_inv" in stored):
        theirs = Fp8Dequantize(None)._dequantize_one(stored[name], stored[f"{name}_scale_inv"], torch.float32)
        assert torch.equal(ours.read(name), theirs), name


@pytest.mark.parametrize(
    "scale_of",
    [lambda w: torch.rand(7, 3), lambda w: torch.zeros(1, 1, dtype=torch.uint8)],
    ids=["shape", "dtype"],
)
def test_fp8_whose_scales_do_not_fit_is_refused_by_its_name(tmp_path, scale_of):
    save_model(tmp_path, "qwen3")
    ours = repack(tmp_path, in_fp8(scale_of), quantization_config={"quant_method": "fp8"})
    recipe = recipe_from_config(ours.config, "small").recipe
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(CheckpointError, match=f"{name} is stored as F8_E4M3, and no {name}_scale_inv is here"):
        bind_weights(build_decoder(recipe), ours)


def test_mxfp4_whose_exponents_do_not_fit_is_refused_by_its_name(gpt_oss):
    def cut(name: str, stored: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        return [(name, stored[:, :5].contiguous() if name.endswith("0.mlp.experts.down_proj_scales") else stored)]

    ours = repack(gpt_oss.path, cut)
    recipe = recipe_from_config(ours.config, "small").recipe
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp.experts\.down_proj is missing") as refused:
        bind_weights(build_decoder(recipe), ours)
    assert "down_proj_scales (3, 5, 3) is extra" in str(refused.value)


@pytest.mark.parametrize("method", ["aqlm", "quip", 4])
def test_other_ways_to_quantise_are_refused_by_their_name(method):
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    with pytest.raises(
        CheckpointError, match=r"quantization_config\.quant_method: .*: weights that are packed so are not read"
    ):
        recipe_from_config(config, "small")


def in_parts(packed: str, dtype: torch.dtype, *beside: str) -> Any:
    """The matrices of layers as others pack them: under a name that ends with `packed`, and with parts beside it."""

    def change(name: str, stored: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        if not name.endswith("_proj.weight"):
            return [(name, stored)]
        start = name.removesuffix(".weight")
        words = torch.zeros(stored.shape[0], stored.shape[1] // 8).to(dtype)
        return [(start + packed, words), *((start + part, torch.ones(len(stored), 1)) for part in beside)]

    return change


@pytest.mark.parametrize(
    ("packer", "dtype", "word", "parts"),
    [
        ("MLX", torch.uint32, "U32", (".weight", ".scales", ".biases")),
        ("MLX", torch.uint32, "U32", (".weight", ".scales")),  # in its own MXFP4
        ("GPTQ or AWQ", torch.int32, "I32", (".qweight", ".qzeros", ".scales")),
        ("compressed-tensors", torch.int32, "I32", (".weight_packed", ".weight_scale")),
        ("NVIDIA's Model Optimizer in NVFP4", torch.uint8, "U8", (".weight", ".weight_scale", ".weight_scale_2")),
        ("bitsandbytes", torch.int8, "I8", (".weight", ".SCB")),
        ("bitsandbytes", torch.uint8, "U8", (".weight", ".weight.absmax")),
    ],
)
def test_weights_that_others_packed_are_refused_with_who_did(tmp_path, packer, dtype, word, parts):
    save_model(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        repack(tmp_path, in_parts(parts[0], dtype, *parts[1:]))
    assert refused.value.problems == (
        f"checkpoint {tmp_path}: model.layers.0.mlp.down_proj{parts[0]} ({word}) and 20 more are packed by {packer}, "
        "in a form that is not read\n"
        "  use the checkpoint that they were quantised from, or a GGUF file of the model",
    )


def test_lists_of_numbers_without_scales_are_not_packed_weights(tmp_path):
    save_model(tmp_path)
    repack(tmp_path, lambda name, stored: [(name, stored), (f"{name}_order", torch.zeros(3, dtype=torch.int32))])
