"""Every built-in recipe, cut down to a size at which a random model of its family proves all stages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_model

from coreai_recipes import Recipe, build, load_recipe
from coreai_recipes.recipe import built_in_recipes
from coreai_recipes.recipe.schema import (
    FullRotary,
    LinearScaling,
    Llama3Scaling,
    ProportionalRotary,
    Repeat,
    SlidingAttention,
)

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
WINDOW, PER_LAYER = 24, 20  # a window shorter than the context, so that it slides
# Norms around each block, and of q and k, round thrice where transformers' round once: a random Gemma loses 2 to 3.1
# dB to transformers' own float16, by the draw, and 3 are allowed. A token that stands between two experts loses 30.
SEEDS = {"gemma2-2b": 3, "gemma4-e4b": 4}
EXPERTS = {"num_experts": 7, "intermediate_size": 40, "router.top": 3}


def one_of_each_family() -> list[str]:
    chosen: dict[tuple[Any, ...], str] = {}
    for name in built_in_recipes():
        recipe = load_recipe(name)
        assert recipe.reference is not None
        rotaries = [kind.rotary.model_dump_json(exclude={"theta"}) for kind in recipe.model.kinds.values()]
        checkpoint = recipe.reference.checkpoint
        # what is embedded is built with its own weights elsewhere
        if checkpoint is not None and not checkpoint.startswith("embedded:"):
            chosen.setdefault((recipe.reference.model_type, recipe.model.head.tied, *rotaries), name)
    return sorted(chosen.values())


def cut_down(name: str) -> Recipe:
    """The recipe with its mechanisms as they are, its sizes small, and each entry of its layers once or twice."""
    whole = load_recipe(name)
    overrides = [f"{key}={value}" for key, value in SIZES.items()]
    if whole.model.embedding.per_layer is not None:
        overrides += [f"model.embedding.per_layer.{key}={value}" for key, value in per_layer_sizes().items()]
    for kind, spec in whole.model.kinds.items():
        sizes: dict[str, Any] = {**KIND_SIZES, **{f"experts.{key}": n for key, n in EXPERTS.items() if spec.experts}}
        if isinstance(spec.attention, SlidingAttention):
            sizes["attention.window"] = WINDOW
        if isinstance(spec.rotary, ProportionalRotary):  # wider heads than the sliding layers', as they are
            sizes |= {"attention.head_dim": 48, "attention.num_kv_heads": 3 if spec.attention.k_eq_v else 2}
        if spec.mlp.intermediate_size > whole.model.kinds[whole.model.layer_kinds[0]].mlp.intermediate_size:
            sizes["mlp.intermediate_size"] *= 2
        if isinstance(spec.rotary, FullRotary) and isinstance(spec.rotary.scaling, Llama3Scaling):
            # a context that puts the small head's frequencies into all three bands of the scaling
            sizes["rotary.scaling.original_context"] = 64
        overrides += [f"model.kinds.{kind}.{key}={value}" for key, value in sizes.items()]
    for index, entry in enumerate(whole.model.layers):
        assert isinstance(entry, Repeat)
        repeat = 2 if len(entry.of) == 1 else 1
        kinds = list(dict.fromkeys(entry.of))
        # neighbours of the same kind once: what follows the last of them is not further away for it
        overrides += [f"model.layers.{index}.repeat={repeat}", f"model.layers.{index}.of=[{', '.join(kinds)}]"]
    return load_recipe(name, overrides)


def per_layer_sizes() -> dict[str, int]:
    return {"size": PER_LAYER, "vocab_size": SIZES["model.vocab_size"]}


def rope_parameters(rotary: Any) -> dict[str, Any]:
    """transformers' words for a rotary."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    if isinstance(rotary, ProportionalRotary):
        rope |= {"rope_type": "proportional", "partial_rotary_factor": rotary.factor}
    elif isinstance(rotary.scaling, LinearScaling):
        rope |= {"rope_type": "linear", "factor": rotary.scaling.factor}
    elif isinstance(rotary.scaling, Llama3Scaling):
        scaling = rotary.scaling
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return rope


def family_settings(recipe: Recipe) -> dict[str, Any]:
    """What a config of the recipe's family says besides what all configs say."""
    assert recipe.reference is not None
    model, family = recipe.model, recipe.reference.model_type
    first = model.kinds[model.layer_kinds[0]]
    if family not in ("gemma2", "gemma3_text", "gemma4_text"):
        return {"rope_parameters": rope_parameters(first.rotary), "sliding_window": None}
    sliding, full = model.kinds["sliding"], model.kinds["full"]
    assert isinstance(sliding.attention, SlidingAttention)
    shared = [kind for kind in model.layer_kinds if model.kinds[kind].attention.shares_kv_with]
    settings = {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": [f"{kind.removesuffix('_shared')}_attention" for kind in model.layer_kinds],
        "sliding_window": sliding.attention.window,
        "query_pre_attn_scalar": round(sliding.attention.score_scale**-2),
        "attn_logit_softcapping": sliding.attention.softcap,
        "final_logit_softcapping": model.head.softcap,
        "rope_parameters": rope_parameters(sliding.rotary),
    }
    if family != "gemma2":
        by_type = {"sliding_attention": sliding, "full_attention": full}
        settings["rope_parameters"] = {name: rope_parameters(kind.rotary) for name, kind in by_type.items()}
    if family == "gemma4_text":
        per_layer, experts = model.embedding.per_layer, sliding.experts
        settings |= {
            "global_head_dim": full.attention.head_dim,
            "num_global_key_value_heads": full.attention.num_kv_heads,
            "attention_k_eq_v": full.attention.k_eq_v,
            "num_kv_shared_layers": len(shared),
            "use_double_wide_mlp": any(
                model.kinds[kind].mlp.intermediate_size > first.mlp.intermediate_size for kind in shared
            ),
            "hidden_size_per_layer_input": per_layer.size if per_layer else 0,
            "vocab_size_per_layer_input": per_layer.vocab_size if per_layer else 0,
            "enable_moe_block": experts is not None,
            "num_experts": experts.num_experts if experts else None,
            "top_k_experts": experts.router.top if experts else None,
            "moe_intermediate_size": experts.intermediate_size if experts else None,
        }
    return settings


def make_checkpoint(recipe: Recipe, folder: Path) -> Path:
    """A random transformers model of the recipe's family and sizes, with a tokenizer, as a hub would have it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    assert recipe.reference is not None
    model = recipe.model
    kind = model.kinds[model.layer_kinds[0]]
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
        eos_token_id=0,
        bos_token_id=0,
        **family_settings(recipe),
    )
    made = small_model(AutoModelForCausalLM.from_config, config, SEEDS.get(recipe.name, 0))
    for name, parameter in made.named_parameters():
        if name.endswith("q_norm.weight") and kind.attention.scale == 1.0:
            # what a trained model has learned: scores that nothing scales would be so sharp that float16 loses them
            parameter.data *= kind.attention.head_dim**-0.5
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
    passed = dict.fromkeys(("rotary", "torch", "package", "package_float16", "package_engine"), True)
    assert stages == {**passed, "tokenizer": True, "draft": None, "compressed": None}
