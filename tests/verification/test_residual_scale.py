"""A residual stream beyond float16's range: lost without `residual_scale`, held with it, and the same in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import Pair, gemma2, gemma4
from family_configs import all_configs
from figures import psnr
from torch import Tensor

from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder, exported_form, fill
from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.primitives.layer import Form
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import MODEL, Recipe
from coreai_recipes.running.tables import Table
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.verification import StageResult, run_stages
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint
from coreai_recipes.verification.remedies import find_remedies
from coreai_recipes.verification.scale import choose_scale
from coreai_recipes.verification.subject import Subject
from coreai_recipes.weights.folding import stored_as

SCALE, LARGEST = 2.0**-7, 65504


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


def overflowing(pair: Pair) -> Pair:
    """The pair with a stream as trained Gemmas have it: the norms behind the blocks write what float16 cannot hold.

    The per-layer gate reads the stream without a norm, and its activation wants the value itself: its weights are as
    small as the stream is large, or no scale of the stream could keep it in range.
    """
    one = 1.0 if pair.recipe.model.norm.weight == "1+w" else 0.0
    with torch.no_grad():
        for name, parameter in pair.model.named_parameters():
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                parameter.copy_((parameter + one) * 3e4 - one)
            if name.endswith("per_layer_input_gate.weight"):
                parameter.mul_(1e-5)
    return pair


MODELS: dict[str, Callable[[], Pair]] = {
    "gemma2": lambda: overflowing(gemma2(functions={"prefill": 8}, context=32)),
    "gemma4": lambda: overflowing(gemma4(sharing=False, functions={"prefill": 8}, context=32)),
}


def scaled_to(recipe: Recipe, scale: float) -> Recipe:
    data = recipe.model_dump()
    data["export"]["residual_scale"] = scale
    return Recipe.model_validate(data)


def random_ids(length: int) -> Tensor:
    return torch.randint(0, 131, (1, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", MODELS)
def test_the_stream_does_leave_float16s_range_and_the_logits_are_the_same(name: str) -> None:
    pair, ids = MODELS[name](), random_ids(24)
    plain, scaled = pair.decoder(), pair.decoder(form=Form(residual_scale=SCALE))
    assert plain.hidden(ids).abs().max() > LARGEST
    assert scaled.hidden(ids).abs().max() < LARGEST / 4
    assert psnr(pair.model(ids).logits, scaled(ids)) >= 90
    assert torch.equal(scaled(ids), plain(ids))


def placed(placement: str, weight: str, per_layer: bool) -> Recipe:
    """A Gemma 4 whose norms stand elsewhere, or have no weights: no model of transformers is so."""
    data = gemma4(per_layer=per_layer, sharing=False, experts=False).recipe.model_dump()
    data["reference"] = None
    data["model"]["placement"] = placement
    data["model"]["norm"]["weight"] = weight
    data["export"]["residual_scale"] = SCALE
    return Recipe.model_validate(data)


@pytest.mark.parametrize("weight", ["w", "1+w", "none"])
@pytest.mark.parametrize("placement", ["pre", "sandwich", "post", "parallel"])
@pytest.mark.parametrize("per_layer", [True, False])
def test_wherever_norms_stand_the_scale_changes_nothing_or_is_refused(
    placement: str, weight: str, per_layer: bool
) -> None:
    """With a norm without weights behind the per-layer input it was taken, and 10 dB of the logits were left."""
    if weight == "none" and (per_layer or placement in ("sandwich", "post")):
        with pytest.raises(
            ValueError, match=r"residual_scale: the norms? after the .* no weights that could absorb it"
        ):
            placed(placement, weight, per_layer)
        return
    recipe = placed(placement, weight, per_layer)
    generator = torch.Generator().manual_seed(0)
    stored = {name: random_weight(name, p.shape, generator) for name, p in build_decoder(recipe).named_parameters()}
    logits = []
    for form in (Form(), Form(residual_scale=SCALE)):
        decoder = build_decoder(recipe, form)
        fill(decoder, lambda name, form=form: stored_as(recipe, name, form).apply(stored[name]))  # type: ignore[misc]
        logits.append(decoder(random_ids(20)))
    assert torch.equal(*logits)


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    random = torch.randn(shape, generator=generator)
    return 1 + 0.2 * random if name.endswith("norm.weight") else random * (shape[1] if len(shape) > 1 else 1) ** -0.5


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, fragments: Path
) -> Callable[[float], tuple[Recipe, Checkpoint, Path]]:
    """The package of the overflowing Gemma 4, its stream scaled."""
    folder = tmp_path_factory.mktemp("overflowing")
    pair, cache = MODELS["gemma4"](), FragmentCache(fragments)
    pair.model.save_pretrained(folder / "checkpoint")
    checkpoint = open_checkpoint(folder / "checkpoint")

    def export(scale: float) -> tuple[Recipe, Checkpoint, Path]:
        recipe = scaled_to(pair.recipe, scale)
        package = folder / f"{scale:g}" / "model.mlpackage"
        if not package.exists():
            decoder = build_decoder(recipe, exported_form(recipe))
            export_package([decoder], bind_weights(decoder, checkpoint), package, cache)
        return recipe, checkpoint, package

    return export


Exported = Callable[[float], tuple[Recipe, Checkpoint, Path]]


def halves(exported: Exported, scale: float) -> StageResult:
    return run_stages(*exported(scale), stages=["package_float16"]).stages[0]


def test_without_the_scale_the_float16_program_overflows_and_the_stage_names_where(exported: Exported) -> None:
    result = halves(exported, 1.0)
    assert result.passed is False
    assert result.detail["first_below"]["tensor"] == result.detail["overflowed"][0]
    assert any("layer_" in name or "hidden_" in name for name in result.detail["overflowed"])


def test_with_the_scale_nothing_overflows(exported: Exported) -> None:
    assert halves(exported, SCALE).detail["overflowed"] == []


@pytest.mark.parametrize("precision", ["rounded", "strict"])
def test_with_the_scale_no_value_of_the_program_comes_near_the_range(exported: Exported, precision: Any) -> None:
    recipe, _, package = exported(SCALE)
    per_layer = recipe.model.embedding.per_layer
    assert per_layer is not None
    table = Table(package.parent / "per_layer_table.bin", len(recipe.model.layer_kinds) * per_layer.size)
    program = Program(package, precision)
    state, ids = program.make_state(), random_ids(12).to(torch.int32)
    largest: dict[str, float] = {}

    def watch(name: str, value: Tensor, operation: str) -> None:
        if value.is_floating_point():
            largest[name] = value.abs().max().item()

    for function, start, count in (("prefill", 0, 8), ("decode", 8, 1), ("decode", 9, 1)):
        given = ids[:, start : start + count]
        inputs = {"input_ids": given, "position": torch.tensor([start]), "per_layer": table.rows(given)}
        if function == "prefill":
            inputs["count"] = torch.tensor([count])
        program.function(function)(inputs, state, watch)
        assert len(largest) > 300
        assert {name: value for name, value in largest.items() if not value <= LARGEST / 4} == {}
    assert max(value for name, value in largest.items() if name.startswith("hidden_")) > LARGEST / 64


def remedies(recipe: Recipe, checkpoint: Checkpoint, package: Path, *before: str) -> list[dict[str, Any]]:
    report = run_stages(recipe, checkpoint, package, stages=[*before, "package_float16"])
    return report.stages[-1].detail["remedies"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("before", [(), ("package",)])
def test_an_overflow_names_the_scale_that_mends_it(exported: Exported, before: tuple[str, ...]) -> None:
    """It used to name the operation alone. The value comes of the largest value that was measured."""
    recipe, checkpoint, package = exported(1.0)
    (remedy,) = remedies(recipe, checkpoint, package, *before)
    assert remedy["field"] == "export.residual_scale"
    assert remedy["text"].startswith(f"export.residual_scale: {remedy['value']:g} (the largest value of the residual")
    mended = halves(exported, remedy["value"])
    assert mended.detail["overflowed"] == []
    assert "remedies" not in mended.detail or mended.detail["remedies"] == []


@pytest.mark.parametrize(
    ("peak", "scale"),
    [
        *((0.0, 1.0), (100.0, 1.0), (8191.0, 1.0), (8192.0, 0.5), (16383.0, 0.5), (16384.0, 0.25), (27586.0, 0.25)),
        *((65504.0, 2**-3), (250e3, 2**-5), (4e8, 2**-16), (float("inf"), 1.0)),
    ],
)
def test_the_scale_is_the_largest_power_of_two_that_leaves_room(peak: float, scale: float) -> None:
    assert choose_scale(peak) == scale


def test_an_overflow_inside_a_block_is_not_blamed_on_the_stream(exported: Exported) -> None:
    recipe, checkpoint, package = exported(SCALE)
    subject = Subject(recipe, {MODEL: checkpoint}, package)
    result = StageResult("package_float16", False, detail={"overflowed": ["layer_1_scores (rounded)"]})
    subject.stream_peak = 12.0
    (remedy,) = find_remedies(result, subject)
    assert (remedy.field, str(remedy)) == (
        "",
        "export.residual_scale does not help: the largest value of the residual stream is 12, and float16 ends at "
        "65,504; layer_1_scores (rounded) lies inside a block, out of reach of any scale",
    )


def test_a_scale_that_the_recipe_cannot_have_is_not_proposed(exported: Exported) -> None:
    recipe, checkpoint, package = exported(1.0)
    data = recipe.model_dump()
    data["reference"], data["model"]["norm"]["weight"] = None, "none"
    subject = Subject(Recipe.model_validate(data), {MODEL: checkpoint}, package)
    subject.stream_peak = 4e5
    result = StageResult("package_float16", False, detail={"overflowed": ["hidden_1 (rounded)"]})
    (remedy,) = find_remedies(result, subject)
    assert remedy.field == ""
    assert "no weights that could absorb it" in str(remedy)


@pytest.mark.parametrize("name", ["minimax-unusual", "nemotron_h-unusual"])
def test_a_stream_that_norms_leave_and_experts_behind_a_projection_take_the_scale_up(name: str) -> None:
    """MiniMax's blocks are added to what a norm gives; what Nemotron 3 Super's experts give is not the stream's."""
    recipe = recipe_from_config(all_configs()[name], "small").recipe
    checkpoint, ids = RandomCheckpoint(recipe), torch.arange(3, 43)[None]

    def hidden_and_logits(scale: float) -> tuple[Tensor, Tensor]:
        decoder = build_decoder(recipe, Form(residual_scale=scale))
        fill_from(decoder, bind_weights(decoder, checkpoint))
        return decoder.hidden(ids), decoder(ids)

    (plain, logits), (scaled, same) = hidden_and_logits(1.0), hidden_and_logits(SCALE)
    assert torch.equal(same, logits)
    assert torch.equal(scaled, plain * SCALE)
