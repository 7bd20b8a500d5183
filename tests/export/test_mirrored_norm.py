"""`export.norm: mirrored`: RMS norms as the layer norm of (x, -x), one operation in place of nine."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from figures import psnr
from programs import layer_kind, random_weights, small_recipe
from torch import Tensor, nn

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder, build_decoder, exported_form, fill
from coreai_recipes.evaluate import Program
from coreai_recipes.export.fragments import FLOAT, Fragment, Port, layer_fragment
from coreai_recipes.primitives.norm import build_norm, mirror_norms
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.recipe.rules import find_problems
from coreai_recipes.recipe.schema import RMSNorm
from coreai_recipes.storage.chunks import chunks_of
from coreai_recipes.targets.coreml.convert import convert_fragment
from coreai_recipes.targets.coreml.mlpackage import write_model

# norms of 1 + w, of each head with weights of its own, of heads alike, of the whole width, and without a weight
KINDS = {
    "plain": layer_kind(placement="sandwich", norm={"kind": "rms", "eps": 1e-6, "weight": "1+w"}),
    "each_head": layer_kind(
        attention_qk_norm={"over": "each_head"}, norm={"kind": "rms", "eps": 1e-5, "weight": "none"}
    ),
    "head": layer_kind(attention_qk_norm={"over": "head"}, attention_v_norm=True),
    "width": layer_kind(attention_qk_norm={"over": "width"}),
}
NORMS = {"plain": 4, "each_head": 4, "head": 5, "width": 4}


def decoder_of(norm: str, scale: float = 1.0) -> Decoder:
    recipe = small_recipe(KINDS, list(KINDS))
    export = recipe.export.model_copy(update={"norm": norm, "residual_scale": scale, "fold": False})
    recipe = recipe.model_copy(update={"export": export})
    decoder, weights = build_decoder(recipe, exported_form(recipe)), random_weights(small_recipe(KINDS, list(KINDS)))
    fill(decoder, lambda name: weights[name])
    return decoder


def operations(decoder: Decoder, kind: str) -> Counter[str]:
    model = Model_pb2.Model.FromString(
        convert_fragment(layer_fragment(decoder, kind, CallShape(decoder.front, 1), chunks_of([decoder])[0]))
    )
    function = model.mlProgram.functions["main"]
    return Counter(op.type for op in function.block_specializations[function.opset].operations if op.type != "const")


def test_it_changes_no_logit() -> None:
    ids = torch.randint(0, 131, (1, 12), generator=torch.Generator().manual_seed(1))
    steps, mirrored = (decoder_of(norm)(ids, 0, 12, None) for norm in ("rms", "mirrored"))
    assert psnr(steps, mirrored) >= 120


@pytest.mark.parametrize("kind", KINDS)
def test_each_norm_is_one_operation_of_what_is_joined_and_cut(kind: str) -> None:
    before, after = (operations(decoder_of(norm), kind) for norm in ("rms", "mirrored"))
    assert before["layer_norm"] == 0
    assert after["layer_norm"] == after["concat"] - before["concat"] == NORMS[kind]
    assert before["rsqrt"] == before["reduce_max"] - after["reduce_max"] == NORMS[kind]
    assert sum(before.values()) - sum(after.values()) >= 6 * NORMS[kind]


class Normed(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm = build_norm(RMSNorm(kind="rms", eps=eps, weight="none"), 40)
        mirror_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_the_program_is_the_norm_unless_squares_overflow_float16_within(eps: float, tmp_path: Path) -> None:
    port = Port(FLOAT, (3, 40, 1, 5))
    model = convert_fragment(Fragment("normed", Normed(eps), {"x": port}, {"y": port}, {}))
    write_model(model, tmp_path / "p")
    x = torch.randn(port.shape, generator=torch.Generator().manual_seed(0)).half().float()
    expected = build_norm(RMSNorm(kind="rms", eps=eps, weight="none"), 40)(x)
    exact, rounded = (Program(tmp_path / "p", precision).function() for precision in ("float32", "rounded"))
    assert psnr(expected, exact({"x": x})["y"]) >= 110
    assert psnr(expected, rounded({"x": x})["y"]) >= 60
    narrow = Program(tmp_path / "p", "strict").function()
    assert psnr(expected, rounded({"x": 300 * x})["y"]) >= 60
    assert psnr(expected, narrow({"x": x})["y"]) >= 60
    assert psnr(expected, narrow({"x": 300 * x})["y"]) < 20


@pytest.mark.parametrize(
    ("norm", "scale", "problem"),
    [
        ({"kind": "rms", "eps": 1e-5}, 0.25, None),
        (
            {"kind": "rms", "eps": 1e-6},
            0.125,
            "an eps of 1.5625e-08, the residual scale's square in it, is below 5.96046e-08, the least that float16 has",
        ),
        ({"kind": "rms", "eps": 1e-6}, "auto", "a mirrored norm's eps depends on the residual scale, which is `auto`"),
        ({"kind": "layer", "eps": 1e-5}, 1.0, "every norm is a layer norm already, so none can be mirrored"),
    ],
)
def test_it_is_refused_where_it_cannot_be(norm: dict[str, object], scale: object, problem: str | None) -> None:
    export = {"context": 64, "norm": "mirrored", "residual_scale": scale}
    found = find_problems({"model": {"norm": norm}, "export": export})
    assert [each.message for each in found if each.location == ("export", "norm")] == ([problem] if problem else [])
