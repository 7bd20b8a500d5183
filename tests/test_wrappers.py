"""Models that see or hear: their text part is built, which computes what transformers' whole model does of text."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_models import small_model

from coreai_recipes.checkpoint.base import EITHER_TIES, stated_flag
from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.errors import CheckpointError
from coreai_recipes.planning.authoring import new_recipe
from coreai_recipes.recipe.importing import config_for, family_names, load_family
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.verification import run_stages

# wholes that tests/verification/test_text_parts.py makes, and Gemma 3n's, whose eyes transformers takes from timm
ELSEWHERE = {"aria", "aya_vision", "cohere2_vision", "cohere_compass", "gemma3n", "got_ocr2", "llama4"}
WRAPPERS = [
    name
    for name in family_names()
    if load_family(name).part is not None and not load_family(name).draft and name not in ELSEWHERE
]
TEXT = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 2e-5,
    "pad_token_id": None,
}


def without(part: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in names}


GEMMA4 = {**TEXT, "pad_token_id": 0, "global_head_dim": 16, "sliding_window": 7, "hidden_size_per_layer_input": 0}
MROPE = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 1, 1]}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 36, "norm_topk_prob": True}
DEEPSEEK = {
    "kv_lora_rank": 28,
    "q_lora_rank": 36,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 14,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 36,
    "num_key_value_heads": 6,
    "first_k_dense_replace": 1,
}
DELTA = {
    **TEXT,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 28}
SHARED.pop("norm_topk_prob")
# The text part of each: what its usual family needs, or another family's.
PARTS: dict[str, dict[str, Any]] = {
    "gemma3": {**TEXT, "sliding_window": 7},
    "gemma4": GEMMA4,
    "gemma4_unified": GEMMA4,
    "kimi_k25": {
        **without(TEXT, "head_dim"),
        **DEEPSEEK,
        "model_type": "kimi_k2",
    },
    "qwen2_vl": {**TEXT, "rope_scaling": {**MROPE, "type": "mrope"}, "rope_theta": 5000.0},
    "qwen2_5_vl": {
        **TEXT,
        "rope_scaling": MROPE,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen3_vl": {**TEXT, "rope_scaling": {**MROPE, "mrope_interleaved": True}},
    "qwen3_vl_moe": {**TEXT, **EXPERTS, "rope_scaling": {**MROPE, "mrope_interleaved": True}},
    "qwen3_5": DELTA,
    "qwen3_5_moe": {**DELTA, **SHARED},
    "exaone4_5": {**TEXT, "sliding_window": 7},
    "fuyu": without(TEXT, "num_key_value_heads", "head_dim", "rms_norm_eps"),
    "lfm2_vl": {**without(TEXT, "rms_norm_eps"), "norm_eps": 2e-5, "layer_types": ["conv", "full_attention", "conv"]},
    "lfm3_vl": {**TEXT, "layer_types": ["conv", "full_attention", "conv"]},
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), DELTA),
    "mistral3": {**TEXT, "model_type": "ministral3", "sliding_window": 7},
}


# of what sees, hears or draws
PARTS_AROUND = {
    "vision_config", "high_res_vision_config", "vq_config", "audio_config", "encoder_config", "projector_config",
}  # fmt: skip


def wrapped(name: str, **around: Any) -> dict[str, Any]:
    """A config of that model_type with a small text part and, as it is not looked at, any eyes."""
    part = {"model_type": load_family(name).family, **PARTS.get(name, TEXT)}
    return {"model_type": name, "text_config": part, "image_token_id": 120, **around}


def on_one_worker(name: str, *more: str, id: str | None = None) -> Any:
    """A test's parameters: those of a model run on one worker of pytest-xdist, which makes its whole once."""
    return pytest.param(name, *more, id=id or name, marks=pytest.mark.xdist_group(name))


@cache
def whole_model(name: str) -> Any:
    """transformers' whole model of `wrapped`, with small eyes where its own would be large."""
    config = wrapped(name, tie_word_embeddings=False)
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    theirs = CONFIG_MAPPING[config["model_type"]](
        **{key: value for key, value in config.items() if key != "model_type"}
    )
    for part in PARTS_AROUND & vars(theirs).keys():
        shrink(getattr(theirs, part))
    theirs._experts_implementation = "eager"
    theirs.get_text_config()._experts_implementation = "eager"
    sees = type(theirs) in AutoModelForImageTextToText._model_mapping
    of = AutoModelForImageTextToText if sees else AutoModelForSeq2SeqLM
    return small_model(of.from_config, theirs, seed=3)


def shrink(eyes: Any) -> None:
    small = {"num_hidden_layers": 1, "depth": 1, "hidden_size": 48, "embed_dim": 48, "intermediate_size": 16}
    small |= {"num_attention_heads": 3, "num_heads": 3, "deepstack_visual_indexes": [0], "fullatt_block_indexes": [0]}
    small |= {"encoder_layers": 1, "num_layers": 1, "d_model": 48, "encoder_attention_heads": 3, "encoder_ffn_dim": 16}
    small |= {
        "hidden_dim": 48,
        "base_channels": 32,
        "channel_multiplier": [1],
        "num_res_blocks": 1,
        "num_embeddings": 8,
    }
    small |= {"out_hidden_size": 48, "head_dim": 16, "image_size": [28, 28], "vocab_size": 8}
    for name, value in small.items():
        if hasattr(eyes, name):
            setattr(eyes, name, 28 if isinstance(getattr(eyes, name), int) and name == "image_size" else value)


def text_model(whole: Any) -> Any:
    return getattr(whole.model, "language_model", None) or whole.model.text_model


@pytest.mark.parametrize("name", map(on_one_worker, WRAPPERS))
def test_the_text_part_computes_what_the_whole_model_does_of_text(name: str) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = wrapped(name, tie_word_embeddings=False)
    whole = whole_model(name)
    alone = config_for(recipe_from_config(config, "small").recipe)
    theirs = CONFIG_MAPPING[alone["model_type"]](**{key: value for key, value in alone.items() if key != "model_type"})
    theirs._experts_implementation = "eager"
    text = AutoModelForCausalLM.from_config(theirs, attn_implementation=whole.config._attn_implementation).eval()
    text.model.load_state_dict(text_model(whole).state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    ids = torch.arange(3, 80)[None]
    with torch.inference_mode():
        assert torch.equal(text(input_ids=ids).logits, whole(input_ids=ids).logits)


# How wholes name their text part and their head: transformers 5, and files of before.
NAMED = {
    "of today": ("model.language_model.", "lm_head."),
    "of old": ("language_model.model.", "language_model.lm_head."),
}


# which began in transformers 5
OF_TODAY = {
    "glmasr", "granite_speech_plus", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "moss_transcribe_diarize",
    "musicflamingo", "qwen3_asr",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "inside", "head"),
    [
        on_one_worker(name, *named, id=f"{name}-{when}")
        for name in WRAPPERS
        for when, named in NAMED.items()
        if name not in OF_TODAY or when == "of today"
    ],
)
def test_a_checkpoint_of_the_whole_fills_the_text_part_and_verifies_it(
    name: str, inside: str, head: str, tmp_path: Path
) -> None:
    whole = whole_model(name)
    if name in ("idefics2", "idefics3", "smolvlm"):
        inside = "model.text_model."
    text = {f"{inside}{key}": value for key, value in stored(text_model(whole), name).items()}
    around = {key: value for key, value in whole.state_dict().items() if not re.search("(language|text)_model", key)}
    around[f"{head}weight"] = around.pop("lm_head.weight")
    tensors = {key: value.contiguous().clone() for key, value in {**text, **around}.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(wrapped(name, tie_word_embeddings=False)))
    recipe = new_recipe(tmp_path).recipe
    checkpoint = SafetensorsCheckpoint(tmp_path)
    decoder = build_decoder(recipe)
    fill_from(decoder, bind_weights(decoder, checkpoint))
    ids = torch.arange(3, 80)[None]
    with torch.inference_mode():
        theirs = whole(input_ids=ids).logits
        ours = decoder(ids)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    report = run_stages(recipe, checkpoint, None, stages=["rotary", "torch"])
    assert [stage.passed for stage in report.stages] == [True, True], report.to_json()


def stored(text: Any, name: str) -> dict[str, torch.Tensor]:
    """A text model's tensors as checkpoints have them: experts one by one, or all in one with the axes exchanged."""
    found = {}
    for key, value in text.state_dict().items():
        if name == "lfm3_vl" and ".g_proj." in key:
            found[key.replace(".g_proj.", ".gate_proj.")] = value
        elif name == "qwen3_vl_moe" and ".experts." in key:
            found[key] = value.transpose(1, 2)
        elif name == "qwen3_5_moe":
            found[key] = value
        elif key.endswith("experts.gate_up_proj"):
            for expert, rows in enumerate(value):
                gate, up = rows.chunk(2)
                found[key.replace("gate_up_proj", f"{expert}.gate_proj.weight")] = gate
                found[key.replace("gate_up_proj", f"{expert}.up_proj.weight")] = up
        elif key.endswith("experts.down_proj"):
            for expert, rows in enumerate(value):
                found[key.replace("down_proj", f"{expert}.down_proj.weight")] = rows
        else:
            found[key] = value
    return found


@pytest.mark.parametrize(
    ("name", "around", "inside", "is_tied"),
    [
        ("gemma3", {}, {}, True),
        ("gemma3", {"tie_word_embeddings": False}, {}, False),  # the part is silent
        ("gemma3", {"tie_word_embeddings": False}, {"tie_word_embeddings": True}, False),  # as transformers has it
        ("qwen3_vl_moe", {"tie_word_embeddings": False}, {"tie_word_embeddings": True}, False),
        ("gemma3", {}, {"tie_word_embeddings": False}, False),
        ("gemma4", {"tie_word_embeddings": True}, {}, True),
        ("mistral3", {}, {}, False),
        ("mistral3", {"tie_word_embeddings": True}, {}, True),
        ("llava", {}, {"tie_word_embeddings": True}, True),
        ("llava_onevision", {"tie_word_embeddings": False}, {"tie_word_embeddings": True}, True),  # 0.5B's own
        ("qwen2_5_vl", {"tie_word_embeddings": False}, {"tie_word_embeddings": True}, True),
        ("llava_next", {"tie_word_embeddings": False}, {"tie_word_embeddings": True}, False),
    ],
)
def test_the_whole_model_s_flag_ties(name: str, around: dict[str, Any], inside: dict[str, Any], is_tied: bool) -> None:
    config = wrapped(name, **around)
    config["text_config"] |= inside
    assert recipe_from_config(config, "small").recipe.model.head.tied is is_tied


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "kimi_k25"])
def test_the_part_s_word_for_a_tie_counts_where_it_does_in_transformers(name: str) -> None:
    from transformers import CONFIG_MAPPING

    config = wrapped(name, tie_word_embeddings=False)
    config["text_config"]["tie_word_embeddings"] = True
    theirs = CONFIG_MAPPING[name](**{key: value for key, value in config.items() if key != "model_type"})
    assert load_family(name).either_ties is theirs.tie_word_embeddings is (name in EITHER_TIES)
    assert stated_flag(config) is theirs.tie_word_embeddings


def test_fields_of_the_text_part_may_stand_around_it_too_where_files_were_flat() -> None:
    """As transformers 4.5x saved Qwen2.5-VL: the text part, and its fields beside it once more."""
    config = wrapped("qwen2_5_vl", vision_config={"depth": 2})
    copies = {key: value for key, value in config["text_config"].items() if key != "model_type"}
    assert recipe_from_config({**copies, **config}, "small").recipe == recipe_from_config(config, "small").recipe
    with pytest.raises(CheckpointError, match=r"^config\.json: num_hidden_layers: not understood"):
        recipe_from_config({**copies, **config, "num_hidden_layers": 9}, "small")


def test_a_flat_config_of_old_is_its_own_text_part() -> None:
    config = wrapped("qwen2_5_vl")
    flat = {**config["text_config"], "model_type": "qwen2_5_vl", "vision_config": {"depth": 2}, "image_token_id": 120}
    assert recipe_from_config(flat, "small").recipe == recipe_from_config(config, "small").recipe


def test_what_stands_around_the_text_part_is_left_out() -> None:
    """As the hub's LLaVA 1.5 and SmolVLM have it."""
    plain = recipe_from_config(wrapped("llava"), "small").recipe
    around = {"vocab_size": 131, "vision_feature_layer": -2, "ignore_index": -100, "image_seq_length": 576}
    assert recipe_from_config(wrapped("llava", **around), "small").recipe == plain
    inside = wrapped("smolvlm", vocab_size=131, scale_factor=4)
    plain = recipe_from_config(inside, "small").recipe
    inside["text_config"] |= {"pixel_shuffle_factor": 4, "perceiver_config": {"resampler_depth": 6}}
    assert recipe_from_config(inside, "small").recipe == plain


def test_a_part_may_be_of_any_family_where_transformers_makes_it_of_its_own_word() -> None:
    from transformers import CONFIG_MAPPING, AutoConfig

    made = {name for name in WRAPPERS if CONFIG_MAPPING[name].sub_configs.get("text_config") is AutoConfig}
    assert made == {name for name in WRAPPERS if load_family(name).any}
    config = wrapped("qianfan_ocr")
    config["text_config"] = {**TEXT, "model_type": "granite"}
    assert recipe_from_config(config, "small").family.name == "granite"
    for model_type in ("qwen3_vl_text", "llava"):  # a part alone, and a whole that has one itself
        config["text_config"]["model_type"] = model_type
        with pytest.raises(CheckpointError, match=f'"{model_type}" is not qwen3 nor another family'):
            recipe_from_config(config, "small")


def test_a_part_is_found_by_its_embedding_and_what_is_around_it_is_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tiny = Path(__file__).parent / "checkpoints" / "tiny-llama"
    tensors = load_file(tiny / "model.safetensors")
    tensors = {f"thinker.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {"thinker.ears.embed_tokens.weight": torch.ones(3, 2), "talker.layers.0.mlp.weight": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    recipe = new_recipe(tiny).recipe
    found = bind_weights(build_decoder(recipe), SafetensorsCheckpoint(tmp_path))
    assert {binding.tensor.partition(".")[0] for binding in found.values()} == {"thinker"}
    tensors["thinker.model.layers.0.mlp.unknown"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"thinker\.model\.layers\.0\.mlp\.unknown \(3,\) is extra"):
        bind_weights(build_decoder(recipe), SafetensorsCheckpoint(tmp_path))
