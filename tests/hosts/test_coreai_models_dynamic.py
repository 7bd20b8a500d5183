"""What Apple's runner of coreai-models is told of its dynamic form, and of which lengths it calls."""

import json

from coreai_recipes.hosts.coreai_models import METADATA, Settings
from coreai_recipes.hosts.coreai_models_dynamic import files_of, ports_of
from coreai_recipes.planning.contract import functions_of
from coreai_recipes.recipe import load_recipe
from coreai_recipes.recipe.host_form import dynamic_form

HOSTED = ["export.format=coreai", "export.host=coreai-models-dynamic"]


def test_metadata_says_which_function_it_is_and_that_the_tokenizer_is_there() -> None:
    said = json.loads(files_of(dynamic_form(load_recipe("tiny-llama", HOSTED)), "model.aimodel")[METADATA])
    assert Settings.read(said) == Settings("model.aimodel", 256, 512)
    assert said["language"]["function_map"] == {"main": ["main"]}
    assert said["language"]["embedded_tokenizer"] is True


def test_a_plan_has_the_one_function_whose_lengths_are_open() -> None:
    recipe = load_recipe("tiny-llama", [*HOSTED, "export.functions.prefill=32"])
    inputs, outputs = ports_of(dynamic_form(recipe))
    assert functions_of(recipe) == {"main": (32, inputs, outputs)}
    assert inputs == {"input_ids": ("int32", (1, -1)), "position_ids": ("int32", (1, -1))}
    assert outputs == {"logits": ("float16", (1, -1, 512))}
