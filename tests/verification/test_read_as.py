"""A checkpoint whose model_type transformers does not know, read as a family's (`recipe new --as`)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from coreai_recipes import CheckpointError, verify
from coreai_recipes.planning.authoring import new_recipe
from coreai_recipes.recipe.loader import load_recipe

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"


def renamed(folder: Path, **changes: Any) -> Path:
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_config_read_as_a_family_is_verified_as_it_and_the_report_says_so(tmp_path: Path) -> None:
    checkpoint = renamed(tmp_path / "new", model_type="my_llama")
    recipe = new_recipe(checkpoint, "llama").recipe
    report = verify(recipe, checkpoint, stages=["rotary", "torch"], require=["torch"])
    assert report.passed, report.to_json()
    said = {stage.detail["config"] for stage in report.stages}
    assert said == {"config.json says model_type my_llama, read as llama's"}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral"},  # transformers has a class of its own for it
        {"model_type": "my_llama", "rms_norm_eps": 1e-4},  # read as Llama's, it is another model than the recipe's
        {"model_type": "my_llama", "attention_sharpness": 2.0},  # not a field of Llama's
    ],
    ids=["known", "another model", "another field"],
)
def test_another_model_is_still_an_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = renamed(tmp_path / "new", **changes)
    with pytest.raises(CheckpointError) as error:
        verify(load_recipe("tiny-llama"), checkpoint, stages=["torch"])
    found = changes["model_type"]
    assert (
        str(error.value)
        == f"checkpoint {checkpoint}: config.json says model_type {found}, but the recipe's reference is llama"
    )


def test_a_checkpoint_that_names_its_own_family_is_not_remarked_upon() -> None:
    report = verify(load_recipe("tiny-llama"), TINY, stages=["rotary"])
    assert "config" not in report.stages[0].detail


def test_a_mistral_that_lists_its_layers_is_verified_as_the_ministral_that_transformers_makes_of_it(
    tmp_path: Path,
) -> None:
    settings = json.loads((TINY / "config.json").read_text())
    types = ["full_attention", *["sliding_attention"] * (settings["num_hidden_layers"] - 1)]
    fields = {"model_type": "mistral", "sliding_window": 16, "layer_types": types}
    checkpoint = renamed(tmp_path / "new", **fields)
    report = verify(new_recipe(checkpoint).recipe, checkpoint, stages=["torch"], require=["torch"])
    assert report.passed, report.to_json()
    assert "config" not in report.stages[0].detail  # nothing was read by `--as`


def test_what_the_family_does_not_know_is_in_the_report(tmp_path: Path) -> None:
    checkpoint = renamed(tmp_path / "new", model_type="my_llama", use_qk_norm=0)
    report = verify(new_recipe(checkpoint, "llama").recipe, checkpoint, stages=["torch"])
    said = "use_qk_norm: 0: left out, transformers' llama has no such field, and its value is empty"
    assert said in report.stages[0].detail["reference"]["left_out"]
