"""How one query's scores lie in a program, which is what decode, a draft and a prefill's last token have."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
from programs import RECIPES, block_of, export, layer_kind, read_model, small_recipe

from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe.schema import Recipe

# Heads of a whole 32, and no cache of fewer rows.
WIDE = {"attention_head_dim": 32}
MECHANISMS = {
    "plain": layer_kind(**WIDE),
    "sinks": layer_kind("sliding", attention_window=40, attention_sinks=True, **WIDE),
    "alibi": layer_kind(rotary="none", attention_alibi={}, attention_softcap=5.0, **WIDE),
}
HEADS = 4  # of `layer_kind`


def results(model: Any, function: str, prefix: str) -> Iterator[tuple[str, list[int]]]:
    """Type and shape of all that is computed from q K^T to weights V in one layer, but one number a head: a sink's."""
    operations = [op for op in block_of(model, function).operations if op.type != "const"]
    products = [i for i, op in enumerate(operations) if op.type == "matmul" and op.outputs[0].name.startswith(prefix)]
    assert len(products) == 2
    for op in operations[products[0] : products[1] + 1]:
        shape = [d.constant.size for d in op.outputs[0].type.tensorType.dimensions]
        if prod(shape) > HEADS:
            yield op.type, shape


def mechanisms(layout: str = "auto") -> Recipe:
    recipe = small_recipe(MECHANISMS, list(MECHANISMS))
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"attention_layout": layout})})


def test_no_result_of_one_querys_attention_is_narrower_than_the_engines_lanes(made: Any, cache: FragmentCache) -> None:
    model = read_model(made("keys_last.mlpackage", lambda folder: export(mechanisms(), folder, cache)))
    for index in range(len(MECHANISMS)):
        found = list(results(model, "decode", f"layer_{index}_"))
        assert found
        assert [(kind, shape) for kind, shape in found if shape[-1] < 32] == []


def test_channels_are_kept_where_the_recipe_says_so(tmp_path: Path, cache: FragmentCache) -> None:
    export(mechanisms("channels"), tmp_path / "p", cache)
    model = read_model(tmp_path / "p")
    for index in range(len(MECHANISMS)):
        assert any(shape[-1] < 32 for _, shape in results(model, "decode", f"layer_{index}_"))


@pytest.mark.parametrize(("index", "rows"), [(2, 32), (3, 96)])  # a ring and a full cache, in blocks of 32
def test_layers_that_a_prefill_runs_for_its_last_token_have_keys_last(
    made: Any, cache: FragmentCache, index: int, rows: int
) -> None:
    recipe = RECIPES["gemma4"]()
    model = read_model(made("gemma4.mlpackage", lambda folder: export(recipe, folder, cache)))
    shapes = [shape for kind, shape in results(model, "prefill", f"layer_{index}_") if kind == "softmax"]
    assert shapes == [[1, 2, 2, rows]]
