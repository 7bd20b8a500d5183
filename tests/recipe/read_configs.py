"""Configs of families with some fields changed, read as recipes."""

from typing import Any

import pytest

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import Recipe

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


# Families that have other names for some of them, or none: what is left.
OTHERWISE = {
    "gpt_neox": SIZES.keys() - {"num_key_value_heads"},
    "falcon": {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"},
    "opt": {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"},
    "gpt2": {"vocab_size"},
    "bloom": {"vocab_size", "hidden_size"},
    "mpt": {"vocab_size"},
}


NOT_UNDERSTOOD = "not understood; this model needs a mechanism that recipes do not have"


def needs(what: str) -> str:
    return f"this model needs {what}, which recipes do not have"


def read(model_type: str, **fields: Any) -> Recipe:
    sizes = {name: size for name, size in SIZES.items() if model_type not in OTHERWISE or name in OTHERWISE[model_type]}
    return recipe_from_config({"model_type": model_type, **sizes, **fields}, "small").recipe


def problems(model_type: str, **fields: Any) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        read(model_type, **fields)
    return list(caught.value.problems)
