"""Write a checkpoint of Qwen3-0.6B's shape with random weights, as a folder that transformers and we both read.

python -m bench.children.make_checkpoint FOLDER LAYERS
"""

import json
import os
import struct
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 40960,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 1,
}


def list_tensors(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the file."""
    hidden, inner, width = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * width, CONFIG["num_key_value_heads"] * width
    yield "model.embed_tokens.weight", (CONFIG["vocab_size"], hidden)
    for index in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "self_attn.q_norm": (width,),
            "self_attn.k_norm": (width,),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"model.layers.{index}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)


def write_weights(path: Path, layers: int) -> None:
    """model.safetensors, bfloat16: norms near 1, the rest with a standard deviation of 0.02."""
    torch.manual_seed(0)
    tensors = dict(list_tensors(layers))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for shape in tensors.values():
            weight = torch.randn(shape).mul_(0.02).add_(float(len(shape) == 1))
            file.write(weight.to(torch.bfloat16).view(torch.int16).numpy().data)


def write_tokenizer(folder: Path) -> None:
    """Three tokens: enough to be a checkpoint."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "[EOS]": 1, "the": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def main(folder: Path, layers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ["full_attention"] * layers
    config = {**CONFIG, "num_hidden_layers": layers, "max_window_layers": layers, "layer_types": kinds}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder)
    unfinished = folder / "model.unfinished"
    write_weights(unfinished, layers)
    os.replace(unfinished, folder / "model.safetensors")
    print(json.dumps({"bytes": (folder / "model.safetensors").stat().st_size}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
