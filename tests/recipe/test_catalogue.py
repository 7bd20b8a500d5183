"""The built-in recipes: that each is what its checkpoint is, as far as can be told without the weights."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from counting import counted

from coreai_recipes.decoder.model import count_parameters
from coreai_recipes.recipe import built_in_recipes, list_recipes, load_recipe, load_resolved
from coreai_recipes.recipe.catalogue import PARAMETERS as PARAMETERS_FILE

# As the model cards and safetensors headers count them; a tied table once.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_248_023_552,
    # the text parts alone; what cards say of Gemma 4 E2B and E4B (5.1 B, 8 B) counts towers for images and sound too
    "gemma4": 4_628_569_379,
    "gemma4-e4b": 7_463_013_418,
    "gemma4-26b-a4b": 25_233_141_790,
    "gemma4-31b": 30_697_345_340,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipe_has_as_many_parameters_as_its_checkpoint(name):
    assert count_parameters(load_recipe(name)) == PARAMETERS[name]


def test_what_the_list_says_is_counted_on_the_decoders():
    """After a change of a recipe, or for a new one: `make schema`."""
    assert PARAMETERS_FILE.read_text() == counted()


def test_tiny_llama_is_the_committed_checkpoint():
    folder = Path(__file__).parents[1] / "checkpoints" / "tiny-llama"
    config = json.loads((folder / "config.json").read_text())
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: info["shape"] for name, info in header.items() if name != "__metadata__"}
    recipe = load_recipe("tiny-llama")
    kind = recipe.model.kinds["full"]
    assert count_parameters(recipe) == sum(math.prod(shape) for shape in tensors.values())
    assert (recipe.model.hidden_size, recipe.model.vocab_size) == (config["hidden_size"], config["vocab_size"])
    assert len(recipe.model.layer_kinds) == config["num_hidden_layers"]
    assert kind.attention.num_heads == config["num_attention_heads"]
    assert kind.attention.num_kv_heads == config["num_key_value_heads"]
    assert kind.rotary.theta == config["rope_parameters"]["rope_theta"]
    assert recipe.model.norm.eps == config["rms_norm_eps"]
    assert recipe.export.context <= config["max_position_embeddings"]


@pytest.mark.parametrize("name", built_in_recipes())
def test_every_built_in_recipe_is_called_as_its_file_and_survives_its_own_text(name, tmp_path):
    resolved = load_resolved(name)
    assert resolved.recipe.name == name
    (tmp_path / "again.yaml").write_text(resolved.text())
    assert load_recipe(tmp_path / "again.yaml") == resolved.recipe
    # the window of the sliding kind that the full one is like, and nothing else
    dropped = "kinds.full.attention.window: dropped, `full` attention has none"
    assert set(resolved.notes) <= {f"model.{dropped}", f"draft.{dropped}"}


def test_the_list_tells_family_size_kinds_and_rotary():
    rows = {row.name: row for row in list_recipes()}
    assert set(rows) >= set(PARAMETERS)
    llama = rows["llama-3.2-1b"]
    assert (llama.family, llama.parameters, llama.kinds, llama.rotary) == (
        "llama",
        1_235_814_400,
        {"full": 16},
        "full (llama3 x32)",
    )


def test_the_list_imports_neither_torch_nor_coremltools():
    code = (
        "import sys; from coreai_recipes.recipe import list_recipes; list_recipes(); "
        "print([name for name in ('torch', 'numpy', 'coremltools', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
