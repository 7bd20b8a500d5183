"""Matrices as the libraries that write such checkpoints quantised them, against what they themselves make of them.

A file holds the parts of one matrix, `expected`, and in its metadata who made both and the config.json beside them.
They were made once, of the same random numbers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from coreai_recipes.checkpoint.base import Grid
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.storage.integers import Integers

FILES = sorted((Path(__file__).parent / "quantised").glob("*.safetensors"))


def parts_of(file: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["config"])
    tensors = load_file(file)
    expected = tensors.pop("expected")
    return tensors, expected, config if "quantization" in config else {"quantization_config": config}


def opened(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> SafetensorsCheckpoint:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_matrix_is_what_its_own_library_makes_of_it(file: Path, tmp_path: Path) -> None:
    tensors, expected, config = parts_of(file)
    beside = {"m.input_scale": torch.ones(1), "n.k_scale": torch.ones(()), "m.bias": torch.ones(64)}
    ours = opened(tmp_path, tensors | beside, config)
    assert ours.tensors.keys() == {"m.weight", "m.bias"}
    assert ours.tensors["m.weight"].shape == (64, 96)
    found = ours.read("m.weight")
    assert found.dtype == torch.float32
    # rounded once to the dtype in which the library computes
    assert torch.equal(found.to(expected.dtype), expected)
    assert torch.equal(ours.read("m.weight", range(5, 31)), found[5:31])
    assert ours.packing is not None
    assert ours.packing.endswith(" (1)")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gptq-4", Integers(4, 16, symmetric=False)),
        ("gptq-8", Integers(8, 16, symmetric=False)),
        ("awq", Integers(4, 16, symmetric=False)),
        ("compressed-tensors-w4a16", Integers(4, 16)),
        ("compressed-tensors-w4a16-asym", Integers(4, 16, symmetric=False)),
        ("compressed-tensors-w8-channel", Integers(8)),
    ],
)
def test_a_matrix_in_blocks_of_the_same_form_is_carried_over_to_the_bit(
    name: str, form: Integers, tmp_path: Path
) -> None:
    tensors, expected, config = parts_of(next(file for file in FILES if file.stem == name))
    found = opened(tmp_path, tensors, config).read("m.weight")
    stored = form.as_stored(found, "m.weight")
    assert torch.equal(stored, found.half().float())
    assert expected.dtype == torch.bfloat16 or torch.equal(stored.half(), expected)


HELD = {
    "gptq-4": Grid(4, 16, symmetric=False),
    "gptq-8": Grid(8, 16, symmetric=False),
    "awq": Grid(4, 16, symmetric=False),
    "compressed-tensors-w4a16": Grid(4, 16),
    "compressed-tensors-w4a16-asym": Grid(4, 16, symmetric=False),
    "compressed-tensors-w8-channel": Grid(8, 96),
    "compressed-tensors-w8-packed": Grid(8, 96),
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_form_that_says_its_grid_lies_on_it_to_the_bit(file: Path, tmp_path: Path) -> None:
    """Groups in another order than the columns', biases that are no whole numbers, scales of float32 say none."""
    tensors, _, config = parts_of(file)
    ours = opened(tmp_path, tensors, config)
    grid = ours.grid("m.weight")
    assert grid == HELD.get(file.stem)
    if grid is not None:
        found = ours.read("m.weight")
        form = Integers(grid.bits, None if grid.block == 96 else grid.block, grid.symmetric)
        assert torch.equal(form.as_stored(found, "m.weight"), found.half().float())


def test_scales_that_float16_does_not_hold_make_no_grid(tmp_path: Path) -> None:
    tensors, _, config = parts_of(next(file for file in FILES if file.stem == "compressed-tensors-w4a16"))
    scales = tensors["m.weight_scale"].float()
    scales[7, 2] = 0.1
    assert opened(tmp_path, tensors | {"m.weight_scale": scales}, config).grid("m.weight") is None


def test_groups_in_the_order_of_the_columns_are_blocks_and_offsets_of_a_half_are_none(tmp_path: Path) -> None:
    """What GPTQ writes without act-order of symmetric numbers."""
    tensors, _, config = parts_of(next(file for file in FILES if file.stem == "gptq-4"))
    tensors["m.g_idx"] = (torch.arange(96) // 16).int()
    tensors["m.qzeros"] = torch.full_like(tensors["m.qzeros"], 0x77777777)
    ours = opened(tmp_path, tensors, config)
    assert ours.grid("m.weight") == Grid(4, 16)
    found = ours.read("m.weight")
    assert torch.equal(Integers(4, 16).as_stored(found, "m.weight"), found.half().float())


def tampered(name: str, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """Parts of a file that do not fit, or say what cannot be, and what is said of them."""
    not_read = "in a form that is not read"
    match name:
        case "gptq-4":
            return tensors | {"m.scales": tensors["m.scales"][:5].contiguous()}, f"GPTQ or AWQ, {not_read}"
        case "awq":
            return tensors | {"m.qzeros": tensors["m.qzeros"][:, :5].contiguous()}, f"GPTQ or AWQ, {not_read}"
        case "compressed-tensors-w4a16-asym":
            return tensors | {"m.weight_scale": torch.ones(64, 5)}, f"compressed-tensors, {not_read}"
        case "mlx-4":
            return tensors | {"m.biases": torch.ones(64, 2)}, f"MLX, {not_read}"
        case "bitsandbytes-nf4":
            state = "m.weight.quant_state.bitsandbytes__nf4"
            said = torch.tensor(list(b'{"blocksize": 64, "shape": [64, 97]}'), dtype=torch.uint8)
            return tensors | {state: said}, f"bitsandbytes, {not_read}"
        case "bitsandbytes-nf4-nested":
            return tensors | {"m.weight.nested_absmax": torch.ones(2)}, f"bitsandbytes, {not_read}"
        case _:
            return tensors | {"m.weight_scale": torch.ones(3, 2)}, "no m.weight_scale_inv is here that fits it"


@pytest.mark.parametrize(
    "name",
    ["gptq-4", "awq", "compressed-tensors-w4a16-asym", "mlx-4", "bitsandbytes-nf4", "bitsandbytes-nf4-nested",
     "compressed-tensors-fp8-block"],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_by_their_name(name: str, tmp_path: Path) -> None:
    tensors, _, config = parts_of(next(file for file in FILES if file.stem == name))
    tensors, said = tampered(name, tensors)
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path, tensors, config).read("m.weight")


def test_a_group_that_there_is_not_is_refused(tmp_path: Path) -> None:
    tensors, _, config = parts_of(next(file for file in FILES if file.stem == "gptq-act-order"))
    tensors["m.g_idx"][7] = 6
    ours = opened(tmp_path, tensors, config)
    with pytest.raises(CheckpointError, match=r"m\.g_idx names a group beyond the 6 that there are"):
        ours.read("m.weight")


def test_fp8_of_the_model_optimizer_is_multiplied_by_its_one_scale(tmp_path: Path) -> None:
    """Its unified checkpoints: weight in F8_E4M3, weight_scale and input_scale one float32 each."""
    small = (torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 40).to(torch.float8_e4m3fn)
    tensors = {"m.weight": small, "m.weight_scale": torch.tensor(0.0123), "m.input_scale": torch.tensor(0.5)}
    config = {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}
    ours = opened(tmp_path, tensors, config)
    assert ours.tensors.keys() == {"m.weight"}
    assert torch.equal(ours.read("m.weight"), small.float() * torch.tensor(0.0123))
    assert ours.packing == "FP8 (1)"


def in_mlx(name: str, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """By mlx.core.quantize's own description, in groups of 32: number * scale + bias."""
    groups = matrix.float().unflatten(1, (-1, 32))  # type: ignore[no-untyped-call]
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scale = ((high - low) / 15).half()
    numbers = ((groups - low.half()) / scale.float()).round().clamp(0, 15).flatten(1).long()
    words = (numbers.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(2)  # type: ignore[no-untyped-call]
    owner = name.removesuffix(".weight")
    parts = {".weight": words.to(torch.uint32), ".scales": scale[..., 0], ".biases": low.half()[..., 0]}
    return {owner + end: part for end, part in parts.items()}


def test_a_model_of_mlx_is_built_like_any_other_and_its_source_is_said(tmp_path: Path, run: Any) -> None:
    from coreai_recipes.recipe import load_recipe
    from coreai_recipes.verification import run_stages

    tiny = Path(__file__).parents[1] / "checkpoints/tiny-llama"
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(tiny / "model.safetensors").items():
        of_groups = tensor.dim() == 2 and tensor.shape[1] % 32 == 0
        tensors |= in_mlx(name, tensor) if of_groups else {name: tensor}
    said = json.loads((tiny / "config.json").read_text()) | {"quantization": {"group_size": 32, "bits": 4}}
    ours = opened(tmp_path, tensors, said)
    assert ours.packing == "MLX of 4 bits (25)"
    (stage,) = run_stages(load_recipe("tiny-llama"), ours, None, stages=["torch"]).stages
    assert stage.passed
    assert stage.detail["reference"]["dequantised_from"] == "MLX of 4 bits (25)"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    status, printed, error = run("validate", "tiny-llama", "--checkpoint", tmp_path)
    assert (status, error) == (0, "")
    assert "tiny-llama: weights are dequantised from MLX of 4 bits (25)\n" in printed
