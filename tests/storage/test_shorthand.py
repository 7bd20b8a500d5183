"""`--bits N`: the same as its long form, whatever the recipe has said before."""

from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import load_recipe, recipe_text
from coreai_recipes.recipe.loader import compress_text
from coreai_recipes.storage.compression import Compression, is_matrix
from coreai_recipes.storage.matching import hold_storage_rules
from coreai_recipes.storage.parameters import own_parameters
from coreai_recipes.storage.shorthand import why_nothing, with_bits

Run = Callable[..., tuple[int, str, str]]


def test_four_bits_are_palettes_with_a_tied_table_at_six() -> None:
    assert compress_text(with_bits(load_recipe("smollm2-135m"), 4)) == (
        "compress: {default: {kind: palettize, bits: 4, group: 16}, rules: [{match: embedding, bits: 6}]}\n"
    )
    assert compress_text(with_bits(load_recipe("smollm2-135m"), 8)) == "compress: {default: {kind: int8}}\n"


def test_rows_for_a_host_are_int8_with_a_scale_for_each_layer() -> None:
    text = compress_text(with_bits(load_recipe("gemma4"), 4))
    assert "- {match: per_layer_table, kind: int8, block: 256}\n" in text


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", ["gemma4-tiny", "tiny-llama", "gemma4-26b-a4b", "qwen3-0.6b"])
def test_matrices_of_few_weights_and_no_others_stay_float16(name: str, bits: int) -> None:
    recipe = with_bits(load_recipe(name), bits)
    hold_storage_rules(recipe)
    parameters = own_parameters(build_stacks(recipe)).shapes
    compression = Compression.of(recipe)
    for tensor, shape in parameters.items():
        small = not is_matrix(tensor, shape) or prod(shape) < 65_536
        assert (str(compression.storage(tensor, shape)) == "float16") is small, tensor


@pytest.mark.parametrize("before", ["", "compress: {default: {kind: int8}, rules: [{match: gone, kind: float16}]}\n"])
def test_the_long_form_that_is_printed_makes_the_same_recipe(run: Run, tmp_path: Path, before: str) -> None:
    start = "extends: gemma4-tiny\nname: mine\n"
    path = tmp_path / "mine.yaml"
    path.write_text(start + before)
    status, printed, _ = run("plan", path, "--bits", "3")
    assert status == 0
    long_form = printed[printed.index("compress:") : printed.index("weight.bin:")]
    expected = recipe_text(with_bits(load_recipe(path), 3))
    path.write_text(start + long_form)
    assert recipe_text(load_recipe(path)) == expected


@pytest.mark.parametrize("command", ["plan", "build"])
def test_bits_that_there_are_not_are_refused(run: Run, tmp_path: Path, command: str) -> None:
    out = ("-o", tmp_path) if command == "build" else ()
    assert run(command, "tiny-llama", "--bits", "5", *out) == (2, "", "--bits 5: not one of 1, 2, 3, 4, 6, 8\n")
    with pytest.raises(RecipeError):
        with_bits(load_recipe("tiny-llama"), 16)


def test_a_model_of_small_matrices_alone_is_told_that_nothing_is_compressed() -> None:
    why = why_nothing(with_bits(load_recipe("tiny-llama"), 4))
    assert why == "--bits compresses nothing here: no matrix has 65,536 weights; `compress` in the recipe does"
    assert why_nothing(with_bits(load_recipe("smollm2-135m"), 4)) is None
