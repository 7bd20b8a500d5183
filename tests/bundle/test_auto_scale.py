"""`export.residual_scale: auto`: measured by a verified build, which then writes the package again and proves that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, Pair
from family_configs import save_tokenizer
from torch import Tensor

from coreai_recipes.bundle import Bundle, build
from coreai_recipes.bundle.scaling import start_scale
from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import build_decoder, exported_form
from coreai_recipes.errors import UserError
from coreai_recipes.evaluate import Program
from coreai_recipes.evaluate.graph import read_graph
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.planning.authoring import new_recipe, write_new
from coreai_recipes.recipe.schema import MODEL, Recipe
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.verification.scale import growing_values, weight_degrees
from coreai_recipes.verification.subject import Subject


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


def asking(recipe: Recipe, scale: float | str) -> Recipe:
    data = recipe.model_dump()
    data["export"]["residual_scale"] = scale
    return Recipe.model_validate(data)


def grown_llama(folder: Path, peak: float) -> tuple[Recipe, Checkpoint]:
    """A Llama whose second MLP writes a stream of that size."""
    pair = FAMILIES["llama"]()
    down = pair.model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        down.mul_(1e4)
        pair.model.save_pretrained(folder / "before")
        down.mul_(peak / Subject(pair.recipe, {MODEL: open_checkpoint(folder / "before")}, None).measure_stream())
    return saved(pair, folder / "checkpoint")


def saved(pair: Pair, folder: Path) -> tuple[Recipe, Checkpoint]:
    pair.model.save_pretrained(folder)
    save_tokenizer(folder)
    return pair.recipe, open_checkpoint(folder)


MODELS: dict[str, Callable[[], Pair]] = {
    name: lambda name=name: FAMILIES[name](functions={"prefill": 8}, context=32)  # type: ignore[misc]
    for name in ("llama", "gemma2")
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_said_to_grow_with_the_scale_does_and_no_other_product_or_divisor(
    name: str, fragments: Path, tmp_path: Path
) -> None:
    """By the graph; and by a package at another scale."""
    pair, cache, scale = MODELS[name](), FragmentCache(fragments), 0.25
    recipe, checkpoint = saved(pair, tmp_path / "checkpoint")
    seen: dict[float, dict[str, tuple[str, Tensor]]] = {}
    for each in (1.0, scale):
        changed, package = asking(recipe, each), tmp_path / f"{each}.mlpackage"
        decoder = build_decoder(changed, exported_form(changed))
        export_package([decoder], bind_weights(decoder, checkpoint), package, cache)
        values = seen.setdefault(each, {})

        def watch(name: str, value: Tensor, operation: str, values: dict[str, Any] = values) -> None:
            if value.is_floating_point():
                values[name] = operation, value.clone()

        program = Program(package)
        inputs = {"input_ids": torch.arange(8)[None], "position": torch.tensor([0]), "count": torch.tensor([8])}
        program.function("prefill")({k: v.to(torch.int32) for k, v in inputs.items()}, program.make_state(), watch)
    graph = read_graph(Package(tmp_path / "1.0.mlpackage", checked=False), "prefill")
    growing = growing_values(graph, weight_degrees(asking(recipe, 1.0)))
    divisors = {node.operands["y"][0] for node in graph.nodes if node.type == "real_div"} - graph.constants.keys()
    checked = 0
    for value, (operation, ours) in seen[1.0].items():
        theirs = seen[scale][value][1]
        if value in growing or operation in ("conv", "matmul") or value in divisors:
            # a weight that was subnormal in float16 lost its last bits
            expected = scale * ours if value in growing else ours
            torch.testing.assert_close(theirs, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()), msg=value)
            checked += value not in growing
    assert checked > 12
    count = {what: list(growing.values()).count(what) for what in ("product", "divisor", "stream")}
    layers = len(recipe.model.layer_kinds)
    # norms behind the blocks of a sandwich divide what o and down write
    assert count["product"] == (2 * layers if name == "llama" else 0)
    assert count["divisor"] == 2 * layers + 1


def test_a_build_measures_writes_the_package_again_and_proves_it(tmp_path: Path) -> None:
    recipe, checkpoint = grown_llama(tmp_path, 24_000)
    bundle = build(asking(recipe, "auto"), checkpoint, tmp_path / "dist")
    assert bundle.recipe.export.residual_scale == 0.25
    assert Bundle.open(bundle.path).recipe == bundle.recipe
    assert [stage["name"] for stage in bundle.report["stages"]][:5] == [
        *("rotary", "torch", "package", "package_float16", "package_engine"),
    ]
    assert all(stage["passed"] for stage in bundle.report["stages"][:5])
    figures = json.loads((bundle.path / "manifest.json").read_text())["residual_scale"]
    assert (figures["asked"], figures["scale"]) == ("auto", 0.25)
    assert 16_384 < figures["largest_product"] < 30_000
    assert 16_384 < figures["largest_divisor"] < 30_000
    (note,) = [note for note in bundle.notes if "residual_scale" in note]
    assert note.startswith("export.residual_scale: 0.25, of the residual stream without a scale, the largest product ")
    by_number = build(asking(recipe, 0.25), checkpoint, tmp_path / "by_number")
    for name, sealed in by_number.manifest["files"].items():
        assert bundle.manifest["files"][name] == sealed, name


def test_a_small_stream_needs_no_scale_and_is_written_once(tmp_path: Path) -> None:
    recipe, checkpoint = saved(MODELS["llama"](), tmp_path / "checkpoint")
    steps: list[tuple[str, int]] = []
    bundle = build(
        asking(recipe, "auto"),
        checkpoint,
        tmp_path / "dist",
        progress=lambda step, done, total: steps.append((step, done)) if done == total else None,
    )
    assert bundle.recipe.export.residual_scale == 1.0
    assert [step for step, _ in steps].count("weights") == 1
    assert [step for step, _ in steps].count("package") == 1


def test_without_verification_auto_is_one_and_that_is_said(tmp_path: Path) -> None:
    recipe, checkpoint = saved(MODELS["llama"](), tmp_path / "checkpoint")
    bundle = build(asking(recipe, "auto"), checkpoint, tmp_path / "dist", verified=False)
    assert bundle.recipe.export.residual_scale == 1.0
    assert "export.residual_scale: auto is 1: without verification, nothing is measured" in bundle.notes
    assert "residual_scale" not in bundle.manifest


def test_where_a_scale_is_refused_auto_is_one_and_no_error() -> None:
    data = asking(FAMILIES["llama"]().recipe, "auto").model_dump()
    data["reference"], data["model"]["head"]["norm"] = None, "none"
    recipe, measures, note = start_scale(Recipe.model_validate(data), verified=True)
    assert (recipe.export.residual_scale, measures) == (1.0, False)
    assert note == "export.residual_scale: auto is 1: no norm before the head would undo it"


def test_a_gemma_3_beyond_float16_builds_by_new_and_build_alone(tmp_path: Path) -> None:
    """Its norms behind the blocks have large weights, as those of trained ones: the stream passes 65,504."""
    pair = FAMILIES["gemma3"](functions={"prefill": 8}, context=32)
    with torch.no_grad():
        for name, parameter in pair.model.named_parameters():
            if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
                parameter.copy_((parameter + 1) * 3e4 - 1)
    _, checkpoint = saved(pair, tmp_path / "gemma")
    assert Subject(pair.recipe, {MODEL: checkpoint}, None).measure_stream() > 65_504
    made = new_recipe(tmp_path / "gemma")
    write_new(tmp_path / "made.yaml", made)
    assert "residual_scale: auto" in made.text
    bundle = build(tmp_path / "made.yaml", checkpoint, tmp_path / "dist")
    assert bundle.report["passed"]
    assert bundle.recipe.export.residual_scale <= 2**-4


def test_a_weight_beyond_float16_that_takes_up_the_scale_starts_below_it(tmp_path: Path) -> None:
    """The package was to be written with a scale of 1 first: `holds 200001, and float16 ends at 65,504`."""
    pair = FAMILIES["gemma3"](functions={"prefill": 8}, context=32)
    with torch.no_grad():
        pair.model.model.layers[1].post_feedforward_layernorm.weight[5] = 200_000
    recipe, checkpoint = saved(pair, tmp_path / "gemma")
    bundle = build(asking(recipe, "auto"), checkpoint, tmp_path / "dist")
    assert bundle.report["passed"]
    assert bundle.recipe.export.scale <= 2**-5
    with pytest.raises(UserError) as refused:
        build(asking(recipe, "auto"), checkpoint, tmp_path / "dist", verified=False)
    assert str(refused.value) == (
        "model.layers.1.post_feedforward_layernorm.weight holds 200001, and float16 ends at 65,504\n"
        "  export.residual_scale: 0.25 would hold it"
    )
