"""The text part of a whole that has no class of its own: its reference is made of config.json all the same."""

import json
from pathlib import Path

import pytest
import transformers
from family_configs import all_configs
from safetensors.torch import load_file, save_file
from small_models import small_model

from coreai_recipes import verify
from coreai_recipes.planning.authoring import new_recipe


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A Qwen3 as the text part of a Qwen3-VL, which turns text as Qwen3 does."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    sizes = {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2, "vocab_size": 131, "head_dim": 16}
    config = Qwen3Config(**sizes, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=2e-5, pad_token_id=None)
    small_model(AutoModelForCausalLM.from_config, config).save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "qwen3_vl_text"}
    for name in ("architectures", "use_sliding_window", "max_window_layers", "sliding_window", "layer_types"):
        text.pop(name, None)
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    tied = text.pop("tie_word_embeddings")
    config_of_whole = {"model_type": "qwen3_vl", "text_config": text, "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(config_of_whole))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_it_is_verified_and_the_report_says_by_what(whole: Path) -> None:
    report = verify(new_recipe(whole).recipe, whole, stages=["rotary", "torch"])
    assert report.passed, report.to_json()
    assert report.stages[0].detail["reference"]["config"] == (
        "config.json, the text part of qwen3_vl, as qwen3's: transformers has no class for it alone"
    )


def test_a_wrong_recipe_of_it_is_seen(whole: Path) -> None:
    """Its reference used to be made of the recipe."""
    recipe = new_recipe(whole).recipe
    data = recipe.model_dump()
    data["model"]["norm"]["eps"] = 1e-3
    (stage,) = verify(type(recipe).model_validate(data), whole, stages=["torch"]).stages
    assert (stage.passed, stage.detail["first_below"]["tensor"]) == (False, "layers.0.query")


VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# the wholes whose text parts are models of their own: a config of the text, and what makes the rest small
WHOLES = {
    "AriaForConditionalGeneration": ("aria_text-plain", VISION),
    "AyaVisionForConditionalGeneration": ("cohere2-plain", VISION),
    "Cohere2VisionForConditionalGeneration": ("cohere2-plain", VISION),
    "CohereCompassForConditionalGeneration": (
        "cohere_compass_text-plain",
        {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 48,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [],
        },
    ),
    "Llama4ForConditionalGeneration": (
        "llama4_text-plain",
        {
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
    ),
    "GotOcr2ForConditionalGeneration": (
        "qwen2-plain",
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_channels": 8,
            "image_size": 32,
            "patch_size": 16,
            "mlp_dim": 16,
            "window_size": 2,
            "global_attn_indexes": [],
        },
    ),
}


@pytest.mark.parametrize("name", WHOLES)
def test_the_text_part_of_transformers_own_whole_is_read_and_verified(name: str, tmp_path: Path) -> None:
    text, vision = WHOLES[name]
    model_class = getattr(transformers, name)
    config = model_class.config_class(text_config=all_configs()[text], vision_config=vision)
    small_model(model_class, config, seed=3).save_pretrained(tmp_path)
    report = verify(new_recipe(tmp_path).recipe, tmp_path, stages=["torch"])
    assert report.passed, report.to_json()
