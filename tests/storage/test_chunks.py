"""Where a model is cut, by its sizes alone."""

import pytest

from coreai_recipes import load_recipe
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import RecipeError
from coreai_recipes.planning.plan import make_plan
from coreai_recipes.storage.chunks import AUTO_BYTES, Chunk, chunks_of
from coreai_recipes.storage.parameters import EMBEDDING, stored_parameters

FOUR_BITS = "compress={default: {kind: palettize, bits: 4}}"


def chunks(recipe: str, *overrides: str) -> tuple[Chunk, ...]:
    loaded = load_recipe(recipe, list(overrides))
    return chunks_of(build_stacks(loaded, exported_form(loaded)))


def test_every_parameter_is_in_a_package_and_a_tied_table_in_two() -> None:
    found = chunks("gemma4-tiny", "export.chunks=3")
    names = [name for chunk in found for name in chunk.parameters.shapes]
    loaded = load_recipe("gemma4-tiny")
    assert {*names} == {*stored_parameters(build_stacks(loaded)).shapes}
    twice = {name for name in names if names.count(name) > 1}
    assert twice == {EMBEDDING}
    assert [EMBEDDING in chunk.parameters.shapes for chunk in found] == [True, True, True]  # the draft looks it up too


def test_a_hosts_table_is_in_the_package_of_a_tied_head_alone() -> None:
    found = chunks("gemma4-tiny", "export.chunks=3", "export.table=host")
    assert [EMBEDDING in chunk.parameters.shapes for chunk in found] == [False, False, True]


def test_layers_that_share_caches_stay_with_their_owners() -> None:
    found = chunks("gemma4", FOUR_BITS, "export.chunks=3")
    assert [(chunk.first, chunk.end) for chunk in found][1:] == [(13, 35), (35, 35)]
    assert all(chunk.parameters.file_bytes < 950_000_000 for chunk in found)
    cuts = [chunk.first for chunk in chunks("gemma4", FOUR_BITS, "export.chunks=15")]
    assert cuts == [*range(14), 35]


def test_auto_makes_as_few_packages_as_a_phone_can_load() -> None:
    for recipe in ("qwen3-0.6b", "qwen3-1.7b"):
        found = chunks(recipe, "export.chunks=auto")
        assert max(chunk.parameters.file_bytes for chunk in found) <= AUTO_BYTES
        fewer = chunks(recipe, f"export.chunks={len(found) - 1}")
        assert max(chunk.parameters.file_bytes for chunk in fewer) > AUTO_BYTES
    assert len(chunks("smollm2-135m", "export.chunks=auto")) == 1


def test_the_largest_of_a_number_of_packages_is_as_small_as_it_can_be() -> None:
    sizes = [chunk.parameters.file_bytes for chunk in chunks("smollm2-135m", "export.chunks=4")]
    smallest = max(sizes)
    held = chunks("smollm2-135m", f"export.chunks={{max_bytes: {smallest + 64 * 400}}}")
    assert len(held) == 4
    with pytest.raises(RecipeError, match="is less than"):
        chunks("smollm2-135m", "export.chunks={max_bytes: 1000000}")


def test_caches_that_are_handed_on_let_a_model_be_cut_anywhere() -> None:
    found = chunks("gemma4", FOUR_BITS, "export.chunks={count: 36, share: pass}")
    assert [(chunk.first, chunk.end) for chunk in found[18:21]] == [(18, 19), (19, 20), (20, 21)]
    assert [chunk.handed for chunk in found[18:21]] == [{18: 13}, {19: 14}, {20: 13}]
    plan = make_plan(load_recipe("gemma4", [FOUR_BITS, "export.chunks={count: 3, share: pass}"]))
    (last,) = [cost.how for cost in plan.costs if cost.what == "package 3 of 3"]
    assert last.endswith("; the caches of layers 13 and 14 come with each call, 9,043,968 bytes")


def test_what_hangs_together_is_said() -> None:
    with pytest.raises(RecipeError) as caught:
        chunks("gemma4", FOUR_BITS, "export.chunks=40")
    assert str(caught.value) == (
        "gemma4: export.chunks: 40 packages cannot be made of it: 15 is the most, "
        "for layers 13 to 34 share caches; `share: pass` hands them on"
    )
