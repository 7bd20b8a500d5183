"""Fragments as a build records them, against torch.export; and its rules of shapes, against torch's own."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from coreai_table import as_coreai
from coreai_torch import get_decomp_table
from test_families import PACKAGED, read_recipe
from torch import Tensor, nn

from bench import torch_export
from coreai_recipes.aimodel.bytecode import splice
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.fragments import Fragment
from coreai_recipes.export.functions import fragments_of
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.targets.coreai import convert, shapes
from coreai_recipes.targets.coreai.recording import recorded

CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"
NAMES = sorted(PACKAGED)
TURN = zlib.crc32(CHANGELOG.read_bytes()) % len(NAMES)


def fragments(recipe: Recipe) -> dict[str, Fragment]:
    return fragments_of(build_stacks(recipe, exported_form(recipe)))


def of_family(name: str) -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    for fragment in fragments(as_coreai(read_recipe(PACKAGED[name]))).values():
        yield convert._Pure(fragment).eval(), tuple(convert._examples(convert.Ports.of(fragment)))


def test_a_recorded_fragment_is_converted_to_the_bytes_of_one_that_torch_export_gave() -> None:
    """Of one family, another whenever CHANGELOG.md has changed."""
    for fragment in fragments(as_coreai(read_recipe(PACKAGED[NAMES[TURN]]))).values():
        ours = convert.convert_fragment(fragment)
        with patch.object(convert, "exported", torch_export.exported):
            theirs = convert.convert_fragment(fragment)
        assert b"".join(splice(ours, lambda *_: None)) == b"".join(splice(theirs, lambda *_: None)), fragment.name


def test_shapes_types_and_layouts_are_those_that_torch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    known, held = shapes._known, set()

    def compared(function: Any, args: Any, kwargs: Any) -> Any:
        found = known(function, args, kwargs)
        if found is not None and not function.is_view:
            on_meta = {"device": shapes.META} if any(a.name == "device" for a in function._schema.arguments) else {}
            theirs = function(*args, **{**kwargs, **on_meta})
            said = f"{function} of {args}"
            assert (found.shape, found.dtype) == (theirs.shape, theirs.dtype), said
            if function not in ANY_LAYOUT:
                assert _layout(found) == _layout(theirs), said
            held.add(function)
        return found

    monkeypatch.setattr(shapes, "_known", compared)
    for turn in range(0, len(NAMES), 25):
        for module, examples in of_family(NAMES[(TURN + turn) % len(NAMES)]):
            recorded(module, examples, get_decomp_table())
    assert held >= {*shapes.RULES, *shapes.REDUCTIONS, *shapes.COPIES} - SELDOM


# torch lets the processor decide, or the operand: whichever it is, an operation of a program gives the same values
ANY_LAYOUT = {shapes.aten.convolution.default, *shapes.REDUCTIONS, shapes.aten.cat.default}
SELDOM = {shapes.aten.index_select.default, shapes.aten.mm.default}  # experts alone


def _layout(tensor: Tensor) -> list[int]:
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.add_(1),)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x if x.sum() > 0 else -x,)


@pytest.mark.parametrize(("module", "said"), [(InPlace(), "in place"), (Deciding(), "value")])
def test_what_no_graph_says_is_refused(module: nn.Module, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        recorded(module, (torch.ones(2, 3),), get_decomp_table())


def test_operands_that_do_not_fit_are_refused_in_torchs_words() -> None:
    class Adding(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x + torch.ones(4),)

    with pytest.raises(RuntimeError, match="should be broadcastable"):
        recorded(Adding(), (torch.ones(2, 3),), get_decomp_table())
