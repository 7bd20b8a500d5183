"""`compress: {default: source}`: each matrix as its checkpoint has it, where a package holds that to the bit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from coreai_recipes.checkpoint.gguf.checkpoint import GRIDS
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import RecipeError
from coreai_recipes.planning.plan import make_plan
from coreai_recipes.recipe import Recipe, load_recipe, recipe_text
from coreai_recipes.storage.integers import Integers
from coreai_recipes.storage.reading import stored_weights
from coreai_recipes.storage.source import with_source

Run = Callable[..., tuple[int, str, str]]
TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
SAID = "compress.default: source: "


def packed(matrix: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words and scales of int4 in groups of `size`, as compressed-tensors packs them."""
    groups = matrix.float().unflatten(1, (-1, size))  # type: ignore[no-untyped-call]
    scale = (groups.abs().amax(2, keepdim=True) / 7).half()
    numbers = (groups / scale.float()).round().clamp(-8, 7).flatten(1).long() + 8
    words = (numbers.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(2)  # type: ignore[no-untyped-call]
    return words.to(torch.uint32).view(torch.int32), scale[..., 0].contiguous()


@pytest.fixture
def quantised(tmp_path: Path) -> SafetensorsCheckpoint:
    """tiny-llama with q in groups of 32, but of 16 in layer 1."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(TINY / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            tensors[f"{name}_packed"], tensors[f"{name}_scale"] = packed(tensor, 16 if ".1." in name else 32)
        elif name.endswith("o_proj.weight"):
            tensors[f"{name}_packed"], tensors[f"{name}_scale"] = packed(tensor, tensor.shape[1])
        else:
            tensors[name] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    groups = {"group_0": {"weights": {"num_bits": 4}}}
    said = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    (tmp_path / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | said))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    return SafetensorsCheckpoint(tmp_path)


def as_source(*overrides: str) -> Recipe:
    return load_recipe("tiny-llama", ["compress.default=source", *overrides])


def test_forms_are_written_out_as_rules_and_nothing_is_fitted(quantised: SafetensorsCheckpoint) -> None:
    recipe, notes = with_source(as_source("export.compute_units=cpu_and_gpu"), {"model": quantised})
    assert recipe.compress is not None
    assert recipe.compress.calibration is None
    assert recipe.compress.default.kind == "float16"
    assert [rule.model_dump(exclude_none=True) for rule in recipe.compress.rules or ()] == [
        {"match": "layers.0.attention.q", "kind": "int4", "block": 32},
        {"match": "layers.*.attention.o", "kind": "int4"},
        {"match": "layers.1.attention.q", "kind": "int4", "block": 16},
        {"match": "layers.2.attention.q", "kind": "int4", "block": 32},
        {"match": "layers.3.attention.q", "kind": "int4", "block": 32},
    ]
    assert notes == (
        f"{SAID}8 of 29 matrices (25% of weights) as the checkpoint has them, in int4 for blocks of 16 and int4 for "
        "blocks of 32 and int4 per channel; the others are float16",
    )
    (quantised.path / "long.yaml").write_text(recipe_text(recipe))
    assert load_recipe(quantised.path / "long.yaml") == recipe


def test_the_package_gives_back_what_the_checkpoint_holds(quantised: SafetensorsCheckpoint) -> None:
    """In the exported form too, where scales are folded into rows and rows lie in another order."""
    recipe, _ = with_source(as_source(), {"model": quantised})
    stored = stored_weights(recipe, quantised)
    for index in range(4):
        for part in "qo":
            weight = stored[f"layers.{index}.attention.{part}.weight"]
            found = quantised.read(f"model.layers.{index}.self_attn.{part}_proj.weight")
            assert torch.equal(weight.read().half(), found.half())


def test_rules_of_the_recipe_go_before_the_checkpoints_forms(quantised: SafetensorsCheckpoint) -> None:
    own = "compress.rules=[{match: layers.1.attention.q, kind: float16}, {match: embedding, kind: int8}]"
    recipe, _ = with_source(as_source(own), {"model": quantised})
    forms = {row["name"]: row["form"] for row in make_plan(recipe).by_tensor}
    assert forms["layers.1.attention.q"] == "float16"
    assert forms["embedding"] == "int8 per channel"
    assert forms["layers.2.attention.q"] == "int4 for blocks of 32"


def test_for_the_engine_it_is_said_that_blocks_are_wrong_there(quantised: SafetensorsCheckpoint) -> None:
    _, notes = with_source(as_source("export.compute_units=cpu_and_ne"), {"model": quantised})
    assert notes[1:] == (
        f"{SAID}integers for blocks were seen wrong on the Neural Engine, or run on the GPU: "
        "compress anew for it, `--bits 4`",
    )


def test_a_checkpoint_that_is_not_quantised_is_refused(run: Run, tmp_path: Path) -> None:
    chosen = ("tiny-llama", "--set", "compress.default=source", "--checkpoint", TINY)
    said = (
        f"checkpoint {TINY}: {SAID}none of its weights are in a form that a package holds\n"
        "  leave `compress` out for float16, or compress anew: `--bits 4`\n"
    )
    assert run("validate", *chosen) == (2, "", said)
    assert run("build", *chosen, "-o", tmp_path / "dist") == (2, "", said)


def test_a_plan_of_shapes_alone_says_that_it_needs_the_checkpoint(run: Run, quantised: SafetensorsCheckpoint) -> None:
    chosen = ("plan", "tiny-llama", "--set", "compress.default=source")
    assert run(*chosen) == (
        2,
        "",
        f"{SAID}the forms of the matrices are the checkpoint's, and it is not read here\n"
        "  `recipe plan --checkpoint SRC` reads them, and so does `recipe build`\n",
    )
    status, printed, _ = run(*chosen, "--checkpoint", quantised.path)
    assert status == 0
    assert "int4 for blocks of 32" in printed
    assert f"{SAID}8 of 29 matrices" in printed


def test_one_word_and_its_mapping_are_the_same() -> None:
    assert as_source() == load_recipe("tiny-llama", ["compress.default.kind=source"])
    with pytest.raises(RecipeError, match="`source` has no bits"):
        as_source("compress.rules=[{match: embedding, bits: 4}]")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks_of_gguf_are_carried_over_to_the_bit(kind: str) -> None:
    """Q4_0's scales are below zero where the largest number of a block is above it."""
    grid = GRIDS[kind]
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32) * 0.05
    of_gguf = GGMLQuantizationType[kind]
    found = torch.from_numpy(dequantize(quantize(weight, of_gguf), of_gguf))
    form = Integers(grid.bits, grid.block, grid.symmetric)
    assert torch.equal(form.as_stored(found, "w"), found.half().float())
