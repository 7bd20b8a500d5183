"""Small random transformers models and hand-made safetensors files for the tests of this folder."""

import json
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch


def save_model(folder: Path, model_type: str = "llama", *, shard: str = "50GB", dtype: str = "float32", **config: Any):
    """A random model of unusual sizes, saved as transformers saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 99, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(sizes | config)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def pack(tensors: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    """The bytes of a safetensors file with this header; `length` overrides the true length of the header."""
    header = json.dumps(tensors).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def write_folder(folder: Path, content: bytes, name: str = "model.safetensors") -> Path:
    """A checkpoint folder with one weight file of these bytes and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def growth(read: Callable[[int], object], count: int) -> float:
    """How many times the processor time of `read(count / 8)` that of `read(count)` is: 8 where time is linear, 64 where
    it is quadratic."""

    def seconds(size: int) -> float:
        before = process_time()
        read(size)
        return process_time() - before

    # the shorter of two: what else runs on the machine only adds
    return seconds(count) / min(seconds(count // 8), seconds(count // 8))
