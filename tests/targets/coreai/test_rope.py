"""Rotaries by Core AI's composite operation: the same to the bit as plain operations, by Apple's runtime."""

from pathlib import Path

import torch
from rotary_specs import HEADS, SPECS, D
from torch import Tensor, nn

from bench.children.same_answers import differences
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.primitives.rotary import build_rotary, fold_order
from coreai_recipes.recipe import load_resolved
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.targets.coreai.convert import exported, new_converter, quietly
from coreai_recipes.targets.coreai.exporter import export_package

CHECKPOINT = Path(__file__).parents[2] / "checkpoints/tiny-llama"
TOKENS, CONTEXT = 7, 96
# what differs in the program; the other forms are these in eager torch (tests/primitives/test_whole_head_rotary.py)
TRIED = {name: SPECS[name] for name in ("backwards", "yarn", "partial", "partial, longrope", "product in float32")}
DTYPES, FOLDS = (torch.float16, torch.bfloat16), (None, "whole_head")


class Turned(nn.Module):
    """x (H, D, 1, S), as float32 holds it, turned at positions (S,) by each rotary in each type: plain and as the
    operation, in the order that it has for whole heads."""

    def __init__(self) -> None:
        super().__init__()
        self.rotaries = [
            (build_rotary(spec, D, fold, CONTEXT), fold_order(spec, D, fold))
            for spec in TRIED.values()
            for fold in FOLDS
        ]

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        found = []
        for dtype in DTYPES:
            for rotary, order in self.rotaries:
                given = (
                    each.to(dtype) if each.is_floating_point() else each for each in rotary.given(positions).values()
                )
                head = x if order is None else x[:, list(order)]
                found.append(rotary.turn(head.to(dtype), tuple(given)).float())
        return tuple(found)


def test_the_operation_is_bit_equal_in_both_half_precisions(tmp_path: Path) -> None:
    x = torch.randn(HEADS, D, 1, TOKENS, generator=torch.Generator().manual_seed(5)).bfloat16().half().float()
    positions = torch.arange(90, 90 + TOKENS, dtype=torch.int32)
    names = [(name, dtype, fold) for dtype in DTYPES for name in TRIED for fold in FOLDS]
    with quietly(), torch.no_grad():
        converter = new_converter()
        converter.add_exported_program(
            exported(Turned(), (x, positions)),
            input_names=["x", "positions"],
            output_names=[f"y_{n}" for n in range(len(names))],
            entrypoint_name="turn",
        )
        program, asset = converter.to_coreai(), tmp_path / "rotaries.aimodel"
        program.save_asset(asset)
    text = str(program)
    # float32 heads too, of the rotary whose product is taken in float32
    assert text.count("composite_declaration") == len(DTYPES) + len(DTYPES) + 1
    assert text.count("invoke @rope_") == len(DTYPES) * len(TRIED)
    runtime = CoreAIProgram(asset)
    given = runtime.function("turn")({"x": x, "positions": positions}, runtime.make_state())
    turned = dict(zip(names, (given[f"y_{n}"] for n in range(len(names))), strict=True))
    for name, spec in TRIED.items():
        back = torch.tensor(fold_order(spec, D, "whole_head") or range(D)).argsort()
        for dtype in DTYPES:
            plain, whole = (turned[name, dtype, fold] for fold in FOLDS)
            assert torch.equal(whole[:, back], plain), f"{name} in {dtype}"


def test_a_package_gives_the_same_to_the_bit(bundle: Path, tmp_path: Path, cache: FragmentCache) -> None:
    recipe = load_resolved("tiny-llama", ["export.format=coreai", "export.rotary_op=composite"]).recipe
    stacks, sources = build_stacks(recipe, exported_form(recipe)), {"model": open_checkpoint(CHECKPOINT)}
    export_package(stacks, bind_stacks(stacks, sources), tmp_path / "model.aimodel", cache)
    assert b"rope_of_positions_4x16x32" in (tmp_path / "model.aimodel/main.mlirb").read_bytes()
    assert differences(tmp_path / "model.aimodel", bundle / "model.aimodel", 512) == []
