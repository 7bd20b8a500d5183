"""Adapters that are not merged: inputs of the functions, proven against peft's model and equal to a merged build."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import save_adapter

from coreai_recipes.bundle import Bundle
from coreai_recipes.bundle.adapting import open_unmerged
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.errors import CheckpointError, RecipeError, UserError
from coreai_recipes.generate import open_model, open_models
from coreai_recipes.verification.report import StageResult
from coreai_recipes.verification.run import run_stages

Run = Callable[..., tuple[int, str, str]]
TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
TEXT = [5, 9, 200, 31, 77, 12, 401, 8]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of tiny-llama: of two matrices, and of all of another rank."""
    from transformers import AutoModelForCausalLM

    folder, model = tmp_path_factory.mktemp("sources"), AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    save_adapter(model, folder / "style", size=0.5, r=4, target_modules=["q_proj", "v_proj"])
    save_adapter(model, folder / "terse", seed=2, size=0.4, r=2, use_rslora=True, target_modules="all-linear")
    return {name: folder / name for name in ("style", "terse")}


def write_recipe(file: Path, adapters: str, export: str = "") -> Path:
    text = f"recipe: 1\nextends: tiny-llama\nname: {file.stem}\nadapters: [{adapters}]\n"
    file.write_text(text + (f"export: {export}\n" if export else ""))
    return file


def said(name: str, source: Path, more: str = "merge: false") -> str:
    return f"{{name: {name}, source: {source}{', ' if more else ''}{more}}}"


@pytest.fixture(scope="module")
def bundle(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One package for both."""
    from coreai_recipes import build

    folder = tmp_path_factory.mktemp("built")
    adapters = f"{said('style', sources['style'])}, {said('terse', sources['terse'], 'scale: 0.5, merge: false')}"
    return build(write_recipe(folder / "both.yaml", adapters), TINY, folder, verified=False)


def logits(bundle: Bundle, adapter: str | None) -> torch.Tensor:
    return open_model(bundle.path, bundle.manifest, "evaluator", adapter).session.feed(TEXT)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    from coreai_recipes.verification.figures import psnr

    return psnr(theirs[None], ours[None])


def proven(
    bundle: Bundle, sources: dict[str, Path], *stages: str, named: tuple[str, ...] = ("style", "terse")
) -> dict[str, StageResult]:
    """What these stages find, with the adapters of these names, which lie there."""
    checkpoint = open_checkpoint(TINY)
    beside = open_unmerged(bundle.recipe, checkpoint, {name: str(path) for name, path in sources.items()})
    given = {name: beside[name] for name in named}
    found = run_stages(bundle.recipe, checkpoint, bundle.package, stages=stages, adapters=given)
    return {stage.name: stage for stage in found.stages}


def test_each_adapter_is_proven_against_peft(bundle: Bundle, sources: dict[str, Path]) -> None:
    found = proven(bundle, sources, "package", "adapters")
    assert found["package"].passed is True  # without an adapter
    assert found["adapters"].passed is True
    assert found["adapters"].detail["reference"]["adapters"] == "merged by peft"
    of_each = found["adapters"].detail["adapters"]
    assert of_each.keys() == {"style", "terse"}
    for of_adapter in of_each.values():
        assert of_adapter.keys() == {"torch", "package", "package_float16"}
        assert of_adapter["torch"]["psnr_db"] > 120
        assert of_adapter["package"]["psnr_db"] > 110


def test_one_package_equals_a_merged_build_with_each_adapter(
    bundle: Bundle, sources: dict[str, Path], tmp_path: Path
) -> None:
    """The merged weights are rounded to float16 and the two factors are: equal to that, and far from the base."""
    from coreai_recipes import build

    without = logits(bundle, None)
    for name, scale in (("style", ""), ("terse", "scale: 0.5")):
        recipe = write_recipe(tmp_path / f"{name}.yaml", said(name, sources[name], scale))
        merged = logits(build(recipe, TINY, tmp_path, verified=False), None)
        assert distance(logits(bundle, name), merged) > 65
        assert distance(without, merged) < 40


def test_packages_and_caches_of_the_host_take_adapters_too(
    bundle: Bundle, sources: dict[str, Path], tmp_path: Path
) -> None:
    """Of several packages each is given the inputs of its own layers, and where the host keeps caches all the same."""
    from coreai_recipes import build

    export = "{chunks: 2, cache: functional}"
    recipe = write_recipe(tmp_path / "apart.yaml", said("style", sources["style"]), export)
    apart = build(recipe, TINY, tmp_path, verified=False)
    assert distance(logits(apart, "style"), logits(bundle, "style")) > 110
    layers = {name: each["layers"] for name, each in apart.manifest["adapters"]["inputs"].items()}
    assert layers["lora_a_full_attention_q_1"] == [0, 1]
    assert layers["lora_b_full_attention_v_2"] == [2, 3]


def test_the_manifest_tells_a_host_what_to_hand_in(bundle: Bundle) -> None:
    adapters = bundle.manifest["adapters"]
    assert adapters["files"] == {"style": "adapters/style.bin", "terse": "adapters/terse.bin"}
    q = adapters["inputs"]["lora_a_full_attention_q"]
    assert (q["shape"], q["role"], q["matrix"], q["layers"]) == ([4, 4, 96], "a", "attention.q", [0, 1, 2, 3])
    functions = bundle.manifest["packages"][0]["functions"]
    assert all(adapters["inputs"].keys() <= function["inputs"].keys() for function in functions.values())
    assert len(adapters["inputs"]) == 14
    assert [each["name"] for each in bundle.manifest["checkpoint"]["adapters"]] == ["style", "terse"]
    assert bundle.recipe.export.low_rank is not None
    assert bundle.recipe.export.low_rank.rank == 4
    bundle.check_package()


def test_a_prompt_cache_belongs_to_an_adapter(bundle: Bundle, tmp_path: Path) -> None:
    """Keys and values of one adapter under another would be another model's."""
    from coreai_recipes.generate.prompt_cache import PromptCache

    file = tmp_path / "kept"
    model = open_model(bundle.path, bundle.manifest, "evaluator", "style")
    first = model.session.feed(TEXT)
    PromptCache(file, model).save()
    again = open_model(bundle.path, bundle.manifest, "evaluator", "style")
    PromptCache(file, again).restore()
    assert len(again.session.token_ids) == len(TEXT)
    assert distance(again.session.feed(TEXT), first) > 100
    for other in (None, "terse"):
        with pytest.raises(UserError, match="was kept with --adapter style; use another name, or remove it"):
            PromptCache(file, open_model(bundle.path, bundle.manifest, "evaluator", other)).restore()


def test_sessions_over_one_package_do_not_see_each_others_states(bundle: Bundle) -> None:
    """As `recipe serve` opens them: a text that goes on under one adapter has that one's keys and values."""
    models = open_models(bundle.path, bundle.manifest, "evaluator", [None, "style", "terse"])
    begun = [model.session.feed(TEXT) for model in models]
    assert distance(begun[1], begun[0]) < 40
    assert distance(begun[2], begun[0]) < 40
    for model in reversed(models):
        alone = open_model(bundle.path, bundle.manifest, "evaluator", model.adapter).session
        assert distance(model.session.feed([*TEXT, 7]), alone.feed([*TEXT, 7])) > 100
        assert model.first is (None if model is models[0] else models[0])


def test_a_text_is_evaluated_with_an_adapter(
    run: Run, bundle: Bundle, sources: dict[str, Path], tmp_path: Path
) -> None:
    (text := tmp_path / "text.txt").write_text("In the beginning God created the heaven and the earth. " * 4)
    ask = ("evaluate", bundle.path, text, "--checkpoint", TINY, "--json")
    status, out, err = run(*ask, "--adapter", f"style={sources['style']}")
    found = json.loads(out)
    assert (status, found["adapter"]) == (0, "style"), err
    assert found["all"]["kl"]["mean"] < 1e-3
    both = [option for name, path in sources.items() for option in ("--adapter", f"{name}={path}")]
    said = "--adapter: style and terse are evaluated one at a time: give one of them\n"
    assert run(*ask, *both) == (2, "", said)


def test_a_plan_counts_what_is_handed_in(tmp_path: Path) -> None:
    from coreai_recipes import load_recipe
    from coreai_recipes.planning.plan import make_plan

    adapter = said("style", tmp_path)
    with_it = write_recipe(tmp_path / "r.yaml", adapter, "{low_rank: {rank: 4, matrices: [attention.q, mlp.down]}}")
    plans = [make_plan(load_recipe(recipe)) for recipe in (with_it, write_recipe(tmp_path / "s.yaml", adapter))]
    width = (96 + 128) + (176 + 96)
    (handed,) = (cost for cost in plans[0].costs if cost.what == "adapter of `full`")
    assert handed.bytes == 2 * 4 * 4 * width  # layers, rank
    decode = [sum(part.flops.get("decode", 0) for part in plan.workloads) for plan in plans]
    assert decode[0] - decode[1] == 2 * 4 * 4 * width
    assert plans[1].notes == (
        "the inputs of style are not counted: export.low_rank says what they are, or a build finds out",
    )


def test_validate_holds_an_adapter_to_the_inputs(run: Run, sources: dict[str, Path], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", said("style", sources["style"]))
    assert run("validate", recipe, "--checkpoint", TINY)[0] == 0
    write_recipe(recipe, said("style", sources["style"]), "{low_rank: {rank: 4, matrices: [attention.q]}}")
    status, _, err = run("validate", recipe, "--checkpoint", TINY)
    wrong = "changes attention.v, which is not among export.low_rank.matrices"
    assert (status, err.splitlines()[0]) == (2, f"adapter {sources['style']}: {wrong}")


def test_an_adapter_that_is_not_there_is_refused(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    status, _, err = run("run", bundle.path, "In the beginning", "--adapter", "x", "--max-tokens", "2")
    assert (status, err) == (2, f"--adapter x: {bundle.path} has no such adapter: it has style, terse\n")
    shutil.copytree(bundle.path, copy := tmp_path / "copy")
    (copy / "adapters/style.bin").unlink()
    status, _, err = run("run", copy, "In the beginning", "--adapter", "style")
    assert (status, err) == (2, f"{copy}/adapters/style.bin: missing since it was built\n")


def test_an_adapter_that_is_exchanged_fails_the_stage(bundle: Bundle, sources: dict[str, Path]) -> None:
    """The stage calls the package with the bundle's own file: that of another adapter is seen."""
    exchanged = {"style": sources["terse"], "terse": sources["style"]}
    wrong = proven(bundle, exchanged, "adapters", named=("style",))["adapters"]
    assert wrong.passed is False
    assert wrong.detail["failed"] == "style: package"
    assert wrong.detail["adapters"]["style"]["torch"]["passed"] is True


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("format: coreai", "an .aimodel cannot take adapters as inputs yet"),
        ("host: anemll", "anemll hands in no adapters"),
    ],
)
def test_what_cannot_take_adapters_says_so(more: str, message: str, tmp_path: Path) -> None:
    from coreai_recipes import load_recipe

    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path / "r.yaml", said("style", tmp_path), f"{{{more}}}"))


def test_what_does_not_go_into_the_inputs_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    from coreai_recipes import build

    export = "{low_rank: {rank: 2, matrices: [attention.q]}}"
    with pytest.raises(CheckpointError) as refused:
        build(write_recipe(tmp_path / "r.yaml", said("style", sources["style"]), export), TINY, tmp_path)
    at = f"adapter {sources['style']}"
    assert refused.value.problems == (
        f"{at}: has rank 4, and export.low_rank.rank is 2",
        f"{at}: changes attention.v, which is not among export.low_rank.matrices",
    )
    export = "{low_rank: {rank: 4, matrices: [attention.x]}}"
    with pytest.raises(RecipeError, match=r"export.low_rank: no layer has a matrix attention.x: there are attention.q"):
        build(write_recipe(tmp_path / "r.yaml", said("style", sources["style"]), export), TINY, tmp_path)


def test_a_dora_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from coreai_recipes import build

    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    save_adapter(model, tmp_path / "dora", use_dora=True, target_modules=["q_proj"])
    with pytest.raises(CheckpointError, match="a DoRA gives the rows of the sum their lengths: it is merged"):
        build(write_recipe(tmp_path / "r.yaml", said("dora", tmp_path / "dora")), TINY, tmp_path)


def test_the_schema_of_manifests_knows_adapters(bundle: Bundle) -> None:
    import jsonschema

    schema = json.loads((Path(__file__).parents[2] / "schemas/manifest.schema.json").read_text())
    jsonschema.validate(bundle.manifest, schema)
