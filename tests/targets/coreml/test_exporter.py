"""A whole export: the same bytes whatever the cache holds, and one copy of every weight, all of which float16 holds."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import (
    RECIPES,
    WEIGHTS,
    blob_digest,
    export,
    file_digests,
    layer_kind,
    random_weights,
    read_model,
    small_recipe,
    stored_constants,
    stored_weights,
)

from coreai_recipes.errors import CheckpointError
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe.schema import Recipe


@pytest.fixture
def recipe() -> Recipe:
    return small_recipe({"sliding": layer_kind("sliding"), "full": layer_kind()}, ["sliding", "full", "sliding"])


def test_bytes_do_not_depend_on_what_the_cache_holds(
    recipe: Recipe, cache: FragmentCache, tmp_path: Path, made: Any
) -> None:
    export(recipe, tmp_path / "shared.mlpackage", cache)
    empty = FragmentCache(tmp_path / "fragments")
    first = export(recipe, tmp_path / "first.mlpackage", empty)
    full = export(recipe, tmp_path / "full.mlpackage", empty)
    entries = sorted((tmp_path / "fragments").iterdir())
    programs = [entry for entry in entries if entry.read_bytes()[32:33] == b"{"]
    assert len(programs) == 1
    for entry in programs + [entry for entry in entries if entry not in programs][:2]:
        entry.unlink()
    part = export(recipe, tmp_path / "part.mlpackage", empty)
    total = first.converted
    assert [(e.converted, e.cached) for e in (first, full, part)] == [(total, 0), (0, total), (2, total - 2)]
    found = [file_digests(tmp_path / f"{name}.mlpackage") for name in ("shared", "first", "full", "part")]
    assert len(found[0]) == 3
    assert found[0] == found[1] == found[2] == found[3]
    shutil.rmtree(tmp_path / "fragments")


def test_a_cache_is_not_needed(tmp_path: Path, cache: FragmentCache) -> None:
    recipe = small_recipe(layers=["full"])
    assert export(recipe, tmp_path / "without.mlpackage", None).cached == 0
    export(recipe, tmp_path / "with.mlpackage", cache)
    assert file_digests(tmp_path / "without.mlpackage") == file_digests(tmp_path / "with.mlpackage")


def test_the_digests_that_it_gives_are_those_of_the_files(recipe: Recipe, cache: FragmentCache, tmp_path: Path) -> None:
    exported = export(recipe, tmp_path / "model.mlpackage", cache)
    assert exported.digests == file_digests(tmp_path)


def test_other_weights_change_weight_bin_alone(recipe: Recipe, cache: FragmentCache, tmp_path: Path) -> None:
    for seed in (0, 1):
        export(recipe, tmp_path / f"{seed}.mlpackage", cache, random_weights(recipe, seed))
    ours, theirs = (file_digests(tmp_path / f"{seed}.mlpackage") for seed in (0, 1))
    assert {name for name in ours if ours[name] != theirs[name]} == {str(WEIGHTS)}


@pytest.mark.parametrize("name", RECIPES)
def test_each_constant_holds_the_weight_that_it_is_named_after(name: str, cache: FragmentCache, made: Any) -> None:
    recipe = RECIPES[name]()
    package = made(f"{name}.mlpackage", lambda folder: export(recipe, folder, cache))
    weights = {n.replace(".", "_"): w for n, w in stored_weights(recipe).items()}
    for constant, _, offset in stored_constants(read_model(package), "decode"):
        parameter = next(n for n in weights if constant == n or constant.startswith(f"{n}_"))
        assert blob_digest(package, offset) == digest(weights[parameter]), constant


def digest(weight: torch.Tensor) -> str:
    return hashlib.sha256(weight.half().numpy().tobytes()).hexdigest()


def test_a_tied_table_is_stored_once(cache: FragmentCache, made: Any) -> None:
    recipe = RECIPES["full"]()
    assert recipe.model.head.tied
    package = made("full.mlpackage", lambda folder: export(recipe, folder, cache))
    offsets = [at for n, _, at in stored_constants(read_model(package), "decode") if n.startswith("embedding_weight")]
    assert len(offsets) == 2
    assert len(set(offsets)) == 1
    stored = sum(-(-2 * w.numel() // 64) * 64 + 64 for w in stored_weights(recipe).values())
    assert stored <= (package / WEIGHTS).stat().st_size + 64 <= stored + 128


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "holds NaN"),
        (float("inf"), "holds an infinity"),
        (-70000.0, "holds -70000, and float16 ends at 65,504"),
    ],
)
def test_a_weight_that_float16_cannot_hold_is_refused_by_name(
    value: float, words: str, recipe: Recipe, cache: FragmentCache, tmp_path: Path
) -> None:
    weights = random_weights(recipe)
    weights["layers.2.mlp.down.weight"][17, 5] = value
    with pytest.raises(CheckpointError, match=f"^layers.2.mlp.down.weight {words}$"):
        export(recipe, tmp_path / "model.mlpackage", cache, weights)


def test_progress_reaches_the_size_of_the_weights(recipe: Recipe, cache: FragmentCache, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    export(recipe, tmp_path / "model.mlpackage", cache, progress=lambda *what: told.append(what))
    weights = [(done, total) for step, done, total in told if step == "weights"]
    assert [done for done, _ in weights] == sorted({done for done, _ in weights})
    assert weights[-1] == (2 * sum(w.numel() for w in stored_weights(recipe).values()),) * 2
