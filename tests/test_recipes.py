"""Every built-in recipe, cut down to a size at which a random model of its family proves all stages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import small_model

from coreai_recipes import Recipe, build, load_recipe
from coreai_recipes.recipe import built_in_recipes
from coreai_recipes.recipe.schema import FullRotary, Llama3Scaling

# Sizes of the same family share their mechanisms, so one of each is built; a new family is a new row by itself.
SIZES = {
    "model.vocab_size": 416,
    "model.hidden_size": 96,
    "export.context": 96,
    "export.functions.prefill": 16,
}
KIND_SIZES = {
    "attention.num_heads": 6,
    "attention.num_kv_heads": 2,
    "attention.head_dim": 32,
    "mlp.intermediate_size": 160,
}


def one_of_each_family() -> list[str]:
    chosen: dict[tuple[Any, ...], str] = {}
    for name in built_in_recipes():
        recipe = load_recipe(name)
        assert recipe.reference is not None
        rotaries = [kind.rotary.model_dump_json(exclude={"theta"}) for kind in recipe.model.kinds.values()]
        if recipe.reference.checkpoint is not None:
            chosen.setdefault((recipe.reference.model_type, recipe.model.head.tied, *rotaries), name)
    return sorted(chosen.values())


def cut_down(name: str) -> Recipe:
    """The recipe with its mechanisms as they are, its sizes small, and two layers of each entry."""
    whole = load_recipe(name)
    overrides = [f"{key}={value}" for key, value in SIZES.items()]
    for kind in whole.model.kinds:
        overrides += [f"model.kinds.{kind}.{key}={value}" for key, value in KIND_SIZES.items()]
        rotary = whole.model.kinds[kind].rotary
        if isinstance(rotary, FullRotary) and isinstance(rotary.scaling, Llama3Scaling):
            # a context that puts the small head's frequencies into all three bands of the scaling
            overrides.append(f"model.kinds.{kind}.rotary.scaling.original_context=64")
    overrides += [f"model.layers.{index}.repeat=2" for index, _ in enumerate(whole.model.layers)]
    return load_recipe(name, overrides)


def make_checkpoint(recipe: Recipe, folder: Path) -> Path:
    """A random transformers model of the recipe's family and sizes, with a tokenizer, as a hub would have it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    assert recipe.reference is not None
    model = recipe.model
    kind = next(iter(model.kinds.values()))
    assert isinstance(kind.rotary, FullRotary)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": kind.rotary.theta}
    if isinstance(kind.rotary.scaling, Llama3Scaling):
        scaling = kind.rotary.scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    config = AutoConfig.for_model(
        recipe.reference.model_type,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=kind.mlp.intermediate_size,
        num_hidden_layers=len(model.layer_kinds),
        num_attention_heads=kind.attention.num_heads,
        num_key_value_heads=kind.attention.num_kv_heads,
        head_dim=kind.attention.head_dim,
        rms_norm_eps=model.norm.eps,
        max_position_embeddings=1024,
        tie_word_embeddings=model.head.tied,
        rope_parameters=rope,
        sliding_window=None,
        eos_token_id=0,
        bos_token_id=0,
    )
    made = small_model(AutoModelForCausalLM.from_config, config, seed=len(recipe.name))
    made.to(torch.bfloat16).save_pretrained(folder)
    letters = {chr(32 + index): index for index in range(96)}
    tokenizer = Tokenizer(models.BPE(letters, [], unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=" ").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", one_of_each_family())
def test_a_built_in_recipe_passes_every_stage(name: str, tmp_path: Path) -> None:
    recipe = cut_down(name)
    bundle = build(recipe, make_checkpoint(recipe, tmp_path / "checkpoint"), tmp_path / "dist")
    stages = {stage["name"]: stage["passed"] for stage in bundle.report["stages"]}
    assert stages == {"rotary": True, "torch": True, "package": True, "package_float16": True, "compressed": None}
