"""`export.float32`: a part of each layer between casts, and nothing else of it."""

from collections import Counter
from importlib.util import find_spec
from typing import Any, get_args

import island_table
import pytest
import torch
from programs import block_of, layer_kind, random_weights, small_recipe, tensor_words

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder, build_decoder, exported_form, fill
from coreai_recipes.export.fragments import Fragment, layer_fragment
from coreai_recipes.planning.plan import make_plan
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.recipe.rules import find_problems
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.recipe.schema.export import Island
from coreai_recipes.storage.chunks import chunks_of
from coreai_recipes.targets.coreml.convert import convert_fragment

NORM = {"maximum": 1, "abs": 1, "reduce_max": 1, "real_div": 2, "mul": 4, "reduce_mean": 1, "add": 1, "rsqrt": 1}


def recipe_with(*names: str) -> Recipe:
    recipe = small_recipe({"full": layer_kind()})
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"float32": [*names]})})


def decoder_of(recipe: Recipe) -> Decoder:
    return build_decoder(recipe, exported_form(recipe))


def fragment_of(recipe: Recipe) -> Fragment:
    decoder = decoder_of(recipe)
    return layer_fragment(decoder, "full", CallShape(decoder.front, 4), chunks_of([decoder])[0])


def operations(recipe: Recipe) -> tuple[Counter[str], Counter[str]]:
    """The operations of a layer that give float32, and the others, constants aside."""
    float32, others = Counter[str](), Counter[str]()
    for operation in block_of(Model_pb2.Model.FromString(convert_fragment(fragment_of(recipe))), "main").operations:
        if operation.type != "const":
            is_float32 = any(tensor_words(out.type.tensorType).startswith("float32") for out in operation.outputs)
            (float32 if is_float32 else others)[operation.type] += 1
    return float32, others


def test_the_norm_alone_is_float32_between_casts() -> None:
    float32, others = operations(recipe_with("attention_norm"))
    none, before = operations(recipe_with())
    assert none == {}
    assert float32.pop("cast") == 2, "the stream and the norm's weights"
    assert float32 == NORM
    assert others + float32 - before == {"cast": 1}
    assert before - others == float32


def test_it_changes_no_logit_in_float32() -> None:
    ids, found = torch.randint(0, 131, (1, 9), generator=torch.Generator().manual_seed(1)), []
    for recipe in (recipe_with(), recipe_with("attention_norm")):
        decoder, weights = decoder_of(recipe), random_weights(recipe)
        fill(decoder, lambda name, weights=weights: weights[name])  # type: ignore[misc]
        found.append(decoder(ids, 0, 9, None))
    assert torch.equal(*found)


@pytest.mark.skipif(find_spec("coreai") is None, reason="needs the extra coreai")
def test_core_ais_layer_is_float32_there_alone() -> None:
    from coreai_recipes.targets.coreai.convert import Ports, _examples, _Pure

    def float32(fragment: Fragment) -> int:
        exported = torch.export.export(_Pure(fragment).eval(), args=tuple(_examples(Ports.of(fragment))))
        values = [node.meta.get("val") for node in exported.run_decompositions({}).graph.nodes]
        tensors = [value for value in values if isinstance(value, torch.Tensor) and value.dim() > 1]
        return sum(tensor.dtype == torch.float32 for tensor in tensors)

    assert float32(fragment_of(recipe_with())) == 0
    assert float32(fragment_of(recipe_with("attention_norm"))) >= sum(NORM.values()) - 2


def test_a_plan_says_what_leaves_the_engine() -> None:
    said = "float32 in each layer, off the engine and back (f32-mid): attention_norm"
    assert said in make_plan(recipe_with("attention_norm")).notes
    assert said not in make_plan(recipe_with()).notes


def test_what_a_recipe_puts_on_an_island_fails_no_build_for_a_device() -> None:
    assert recipe_with("attention_norm").export.allowed == {"f32-mid": "export.float32 has attention_norm"}
    assert recipe_with().export.allowed == {}


@pytest.mark.parametrize(
    ("placement", "names", "problem"),
    [
        ("pre", ["attention_norm"], None),
        ("sandwich", ["attention_norm", "attention_norm"], "attention_norm is named twice"),
        (
            "post",
            ["attention_norm"],
            "no layer has an attention_norm: with the placement post, attention reads the residual stream itself",
        ),
    ],
)
def test_it_is_refused_where_it_names_nothing(placement: str, names: list[str], problem: str | None) -> None:
    recipe: dict[str, Any] = {"model": {"placement": placement, "kinds": {"full": {}}}, "export": {"float32": names}}
    found = [each.message for each in find_problems(recipe) if each.location[:2] == ("export", "float32")]
    assert found == ([problem] if problem else [])


def test_every_island_is_some_familys_and_has_its_figures() -> None:
    named = {name for names in island_table.islands().values() for name in names}
    assert named == {*get_args(Island)}
    assert {row[:3] for row in island_table.written()} == {
        (family, island, str(seed))
        for family, names in island_table.islands().items()
        for island in names
        for seed in island_table.SEEDS
    }
