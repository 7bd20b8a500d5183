"""Gemma 4 as hubs have it: the text part of a multimodal checkpoint, and drafts that do not fit their targets."""

import json
from pathlib import Path

import pytest
import torch
from families import gemma4
from gemma4_drafts import gemma4_draft
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from coreai_recipes import build, verify
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import bind_weights, left_out
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.schema import Recipe

SEEING_AND_HEARING = {
    "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight": (8, 8),
    "model.vision_tower.patch_embedder.input_proj.weight": (8, 12),
    "model.embed_vision.embedding_projection.weight": (48, 8),
    "model.audio_tower.layers.0.feed_forward1.ffw_layer_1.linear.weight": (16, 8),
    "model.embed_audio.embedding_projection.weight": (48, 8),
}


def wrap(folder: Path) -> None:
    """Make the text checkpoint in `folder` a multimodal one."""
    text = load_file(folder / "model.safetensors")
    tensors = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in text.items()}
    tensors |= {name: torch.ones(shape) for name, shape in SEEING_AND_HEARING.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    wrapper = {"model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(wrapper | {"vision_config": {}, "audio_config": {}}))


@pytest.fixture
def wrapped(tmp_path: Path) -> tuple[Recipe, Path]:
    """A recipe, and a checkpoint with the multimodal wrapper."""
    pair = gemma4(sharing=False, experts=False, functions={"prefill": 8}, context=32)
    folder = tmp_path / "checkpoint"
    pair.model.save_pretrained(folder)
    wrap(folder)
    Tokenizer(models.WordLevel({str(index): index for index in range(131)}, "0")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return pair.recipe, folder


def test_the_text_part_of_a_multimodal_checkpoint_builds(wrapped: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, folder = wrapped
    bundle = build(recipe, folder, tmp_path / "dist", verified=False)
    assert bundle.left_out == (
        "1 tensor of model.audio_tower",
        "1 tensor of model.embed_audio",
        "1 tensor of model.embed_vision",
        "2 tensors of model.vision_tower",
    )
    report = verify(bundle, folder, stages=["rotary", "torch", "package"])
    assert report.passed, report.to_json()


def test_a_tensor_of_the_text_part_that_the_recipe_lacks_is_not_left_out(wrapped: tuple[Recipe, Path]) -> None:
    recipe, folder = wrapped
    tensors = load_file(folder / "model.safetensors")
    stray = "model.language_model.layers.0.self_attn.gate.weight"
    save_file({**tensors, stray: torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        bind_weights(build_decoder(recipe), open_checkpoint(folder))
    assert caught.value.problems == (
        f"checkpoint {folder}: {stray} (3,) is extra: the weight names `gemma4` do not list it",
    )


def test_keys_and_values_that_no_layer_computes_are_left_out(tmp_path: Path) -> None:
    """Checkpoints may hold them for layers that share a cache."""
    pair = gemma4()
    pair.model.save_pretrained(tmp_path)
    tensors, unused = load_file(tmp_path / "model.safetensors"), {}
    for name in ("k_proj", "v_proj", "k_norm"):
        unused[f"model.layers.4.self_attn.{name}.weight"] = tensors[f"model.layers.0.self_attn.{name}.weight"].clone()
    save_file({**tensors, **unused}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    bindings = bind_weights(build_decoder(pair.recipe), checkpoint)
    assert left_out(bindings, checkpoint) == [
        f"1 tensor of model.layers.*.self_attn.{name}" for name in ("k_norm", "k_proj", "v_proj")
    ]


def changed_draft(recipe: Recipe, **changes: int) -> Recipe:
    data = recipe.model_dump()
    data["draft"].update(changes)
    return Recipe.model_validate(data)


def test_a_draft_of_another_hidden_size_is_refused_with_both_numbers(tmp_path: Path) -> None:
    recipe, draft = gemma4_draft(gemma4())
    draft.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    bind_weights(Draft.build(recipe), checkpoint)
    wide = gemma4(hidden_size=52).recipe
    other = Recipe.model_validate(wide.model_dump() | {"draft": recipe.draft and recipe.draft.model_dump()})
    with pytest.raises(CheckpointError) as caught:
        bind_weights(Draft.build(other), checkpoint)
    assert caught.value.problems == (
        f"checkpoint {tmp_path}: post_projection.weight is (48, 36), but the recipe needs (52, 36)",
        f"checkpoint {tmp_path}: pre_projection.weight is (36, 96), but the recipe needs (36, 104)",
    )
    with pytest.raises(CheckpointError) as caught:
        bind_weights(Draft.build(changed_draft(recipe, hidden_size=40)), checkpoint)
    assert f"checkpoint {tmp_path}: pre_projection.weight is (36, 96), but the recipe needs (40, 96)" in str(
        caught.value
    )
