"""The reference of a GGUF file is what transformers reads of it, so a mistake of our reader is seen by a stage.

What transformers does not read comes from our reader and is named; `test_gguf_config` holds it to values of its own.
"""

from pathlib import Path
from typing import Any

import pytest
from gguf_configs import CONFIGS
from gguf_files import random_model, write_gguf

from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.checkpoint.gguf import sources
from coreai_recipes.errors import CheckpointError
from coreai_recipes.planning.authoring import new_recipe
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.report.verdict import print_report
from coreai_recipes.verification import Report, run_stages
from coreai_recipes.verification.their_gguf import OURS, read_by_transformers

THEIRS = (
    "llama",
    "llama-biases",
    "llama-llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "nemotron",
    "mamba",
)


def save(folder: Path, case: str, **extra: Any) -> Path:
    architecture, config = CONFIGS[case]
    return write_gguf(folder / f"{case}.gguf", architecture, config, random_model(config).state_dict(), **extra)


def verified(path: Path, checkpoint: Checkpoint) -> Report:
    return run_stages(new_recipe(path).recipe, checkpoint, None, stages=["rotary", "torch"])


@pytest.mark.parametrize("case", THEIRS)
def test_what_transformers_knows_is_compared_with_its_own_reading(tmp_path: Path, case: str) -> None:
    path = save(tmp_path, case)
    report = verified(path, open_checkpoint(path))
    assert report.passed, report.to_json()
    made_of = report.stages[1].detail["reference"]
    assert (made_of["config"], made_of["tensors"]) == ("transformers", "transformers")
    assert "disagreeing" not in made_of


def as_reference(path: Path, model_type: str) -> Recipe:
    """The recipe of that file, whose reference is of another model_type."""
    data = new_recipe(path).recipe.model_dump()
    data["reference"]["model_type"] = model_type
    return Recipe.model_validate(data)


def test_a_family_that_llama_cpp_writes_as_llama_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mistral-7b's GGUF used to be refused, for it says `llama`."""
    path = save(tmp_path, "mistral")
    report = run_stages(as_reference(path, "mistral"), open_checkpoint(path), None, stages=["rotary", "torch"])
    assert report.passed, report.to_json()
    assert report.stages[1].detail["reference"]["written_as"] == "llama"
    print_report(report.to_json())
    said = " ".join(capsys.readouterr().out.split())
    assert "reference config: transformers; the file says llama, as which llama.cpp writes this family" in said


def test_a_file_of_another_family_is_no_reference(tmp_path: Path) -> None:
    path = save(tmp_path, "qwen2")
    with pytest.raises(CheckpointError, match=r"qwen2.gguf: is a qwen2, but the recipe's reference is mistral"):
        run_stages(as_reference(path, "mistral"), open_checkpoint(path), None, stages=["torch"])


def test_what_it_does_not_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, "llama-llama3")
    report = verified(path, open_checkpoint(path))
    assert report.stages[1].detail["reference"]["not_read_by_transformers"] == ["rope_scaling"]
    print_report(report.to_json())
    assert "reference config: transformers; of which it does not read rope_scaling" in capsys.readouterr().out


def test_an_architecture_that_it_does_not_know_is_ours_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, "gemma")
    report = verified(path, open_checkpoint(path))
    assert report.passed, report.to_json()
    assert report.stages[1].detail["reference"] == {
        "config": OURS,
        "tensors": OURS,
        "why": "GGUF model with architecture gemma is not supported yet.",
    }
    print_report(report.to_json())
    assert "reference config: our reader (not independent)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "wrong"), [("rope_theta", 2e5), ("rms_norm_eps", 1e-3), ("num_key_value_heads", 4), ("head_dim", 16)]
)
def test_a_field_that_we_read_wrong_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, wrong: float
) -> None:
    """The recipe and our config have the same mistake, as a mistake of the reader would make them."""
    path = save(tmp_path, "llama")
    checkpoint = open_checkpoint(path)
    right = checkpoint.config[field]
    recipe = new_recipe(path).recipe
    monkeypatch.setitem(checkpoint.config, field, wrong)
    merged, said = read_by_transformers(checkpoint).merge(checkpoint.config)  # type: ignore[arg-type]
    assert merged[field] == pytest.approx(right)
    assert said["disagreeing"][field]["our reader"] == wrong
    if field in ("rope_theta", "rms_norm_eps"):
        data = recipe.model_dump()
        if field == "rope_theta":
            data["model"]["kinds"]["full"]["rotary"]["theta"] = wrong
        else:
            data["model"]["norm"]["eps"] = wrong
        report = run_stages(type(recipe).model_validate(data), checkpoint, None, stages=["torch"])
        assert report.stages[0].passed is False


def test_a_theta_of_full_layers_is_seen_where_each_kind_has_its_own(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path, "gemma3"))
    parameters = checkpoint.config["rope_parameters"]
    wrong = {**parameters, "full_attention": {**parameters["full_attention"], "rope_theta": 123.0}}
    merged, said = read_by_transformers(checkpoint).merge({**checkpoint.config, "rope_parameters": wrong})  # type: ignore[arg-type]
    assert said["disagreeing"] == {"rope_theta": {"transformers": 1e6, "our reader": 123.0}}
    assert merged["rope_parameters"] == parameters


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_a_rewriting_that_we_do_not_undo_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """llama.cpp interleaves the rows of q and k, and adds one to Gemma's norms; the reference used to be read by us."""
    path = save(tmp_path, case)
    monkeypatch.setattr(sources, "restore", lambda block, *how: block.float())
    report = run_stages(new_recipe(path).recipe, open_checkpoint(path), None, stages=["torch"])
    assert report.stages[0].passed is False
    assert report.stages[0].detail["first_below"]["tensor"] == "layers.0.query"
