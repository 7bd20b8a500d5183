"""Adapters for tests, made and saved by peft, no parameter at its default."""

from pathlib import Path
from typing import Any

import torch
from small_models import small_model


def tiny_llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": 24,
        "head_dim": 6,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=50, num_hidden_layers=2, **{**sizes, **changes})
    return small_model(LlamaForCausalLM, config)


def save_adapter(model: Any, folder: Path, seed: int = 1, size: float = 1.0, **settings: Any) -> Any:
    """`folder` holds an adapter of the model as peft writes it; gives peft's model around a copy."""
    import copy

    from peft import LoraConfig, get_peft_model

    given = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], **settings}
    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **given))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                random = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(random + 0.5 if "magnitude" in name else (random - 0.5) * size)
    wrapped.save_pretrained(str(folder))
    return wrapped
