"""A small random Qwen3.5: two layers of the gated delta rule and one of attention, saved as a checkpoint."""

import json
from pathlib import Path
from typing import Any

from small_models import small_model

from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.importing.assembling import recipe_from_config


def small_delta(vocab_size: int = 96) -> Any:
    """transformers' model, its weights float16 numbers as a package has them: norms as 1 + w, rates as exp(A_log)."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=vocab_size, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention", "linear_attention"],
        max_position_embeddings=256, eos_token_id=None,
    )  # fmt: skip
    model = small_model(Qwen3_5ForCausalLM, config)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data = parameter.data.exp().half().float().log()
        elif "norm" in name and "linear_attn.norm" not in name:
            parameter.data = (1 + parameter.data).half().float() - 1
        else:
            parameter.data = parameter.data.half().float()
    return model


def save_delta(model: Any, folder: Path, **export: object) -> tuple[Recipe, Checkpoint]:
    """The model's checkpoint, written into `folder`, and its recipe with `export` over what the importer says."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    recipe = recipe_from_config(config, "small").recipe.model_dump(mode="json", exclude_unset=True)
    recipe["export"] |= {"context": 96, "functions": {"prefill": 16}, "residual_scale": 1.0, **export}
    return Recipe.model_validate(recipe), open_checkpoint(folder)
