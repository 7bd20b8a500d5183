"""A small Llama's parameters and its checkpoint, and tables of names of one's own."""

import pytest

from coreai_recipes.errors import CheckpointError
from coreai_recipes.weights.binding import ParameterInfo, bind
from coreai_recipes.weights.names import load_names

# Switches of a family's config under which its random model has every tensor that the family can have.
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {"attention_bias": True},
    "gemma2": {},
    "gemma3": {"model_type": "gemma3_text"},
    "gemma4": {
        "model_type": "gemma4_text",
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 99,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 28,
    },
    "gemma4_assistant": {},
}


def llama_parameters(layers: int = 3, kind: str = "full", **changes: tuple[int, ...]) -> dict[str, ParameterInfo]:
    """What our decoder asks of the random Llama of `save_model`; `changes` are shapes by the end of a name."""
    shapes = {
        "attention_norm.weight": (48,), "attention.q.weight": (48, 48), "attention.k.weight": (16, 48),
        "attention.v.weight": (16, 48), "attention.o.weight": (48, 48), "mlp_norm.weight": (48,),
        "mlp.gate.weight": (80, 48), "mlp.up.weight": (80, 48), "mlp.down.weight": (48, 80),
    }  # fmt: skip
    parameters = {"embedding.weight": ParameterInfo((99, 48)), "norm.weight": ParameterInfo((48,))}
    for layer in range(layers):
        for name, shape in (shapes | changes).items():
            parameters[f"layers.{layer}.{name}"] = ParameterInfo(shape, kind)
    return parameters


def problems(parameters, names, checkpoint) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        bind(parameters, names, checkpoint)
    assert all(problem.startswith(f"checkpoint {checkpoint.path}: ") for problem in caught.value.problems)
    return [problem.removeprefix(f"checkpoint {checkpoint.path}: ") for problem in caught.value.problems]


def refusal(names: str) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        load_names(names)
    return list(caught.value.problems)
