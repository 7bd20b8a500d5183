"""A draft's own head, and a config that is another draft's: the draft's reference is made of its checkpoint too."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from coreai_recipes import CheckpointError, load_recipe
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.recipe.schema import DRAFT, MODEL
from coreai_recipes.verification import StageResult, run_stages

EXAMPLE = Path(__file__).parents[2] / "examples/gemma4-tiny"


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLE / "draft", tmp_path / "draft"))


def run(draft: Path, monkeypatch: pytest.MonkeyPatch) -> StageResult:
    """By steps on random caches alone, as for a model that is too large to be held."""
    monkeypatch.setattr("coreai_recipes.verification.memory.free_bytes", lambda: 0.0)
    target, of_draft = open_checkpoint(EXAMPLE), open_checkpoint(draft)
    return run_stages(load_recipe("gemma4-tiny"), {MODEL: target, DRAFT: of_draft}, None, stages=["draft"]).stages[0]


def test_a_draft_whose_head_is_not_its_table_is_built_with_its_head(
    draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers unties it; the table alone used to be read, on both sides."""
    tensors = load_file(draft / "model.safetensors")
    table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = tensors[table].flip(0).contiguous()
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(draft)
    bound = bind_weights(Draft.build(load_recipe("gemma4-tiny")), checkpoint)["head.weight"]
    assert torch.equal(bound.read(), tensors["lm_head.weight"])
    result = run(draft, monkeypatch)
    assert result.passed, result.detail
    from coreai_recipes.verification.draft_reference import load_draft

    theirs = load_draft(load_recipe("gemma4-tiny"), checkpoint)
    assert torch.equal(theirs.lm_head.weight, tensors["lm_head.weight"].float())  # type: ignore[union-attr]


def test_the_report_says_how_the_draft_was_made(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(draft, monkeypatch)
    assert result.passed, result.detail
    assert result.detail["reference"]["config"] == "config.json"
    assert result.detail["reference"]["draft"].startswith("its own config.json, without transformers 5.23's check")


def test_a_wrong_eps_of_the_draft_is_seen(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((draft / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (draft / "config.json").write_text(json.dumps(config))
    assert run(draft, monkeypatch).passed is False


def test_a_draft_of_another_model_type_is_refused(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**config, "model_type": "gemma4_unified_assistant"}))
    with pytest.raises(CheckpointError) as refused:
        run(draft, monkeypatch)
    assert str(refused.value) == (
        f"checkpoint {draft}: config.json says model_type gemma4_unified_assistant, "
        "but the reference of the recipe's draft is gemma4_assistant"
    )
