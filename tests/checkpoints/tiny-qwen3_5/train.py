"""Train tiny-qwen3_5, a small Qwen3.5 with the states of a language model, and save it beside this file.

apt-get install bible-kjv && python train.py
bible -f gen1:1-rev22:21 > kjv.txt && python train.py --text kjv.txt --out elsewhere

The loop is in ../training.py; the text, its split and its tokenizer are those of examples/gemma4-tiny/train.py.
"""

import sys
from pathlib import Path

from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from training import INITIALIZER_RANGE, Training, main, spread_forgetting  # noqa: E402

ARCHITECTURE = {
    "vocab_size": 512,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "initializer_range": INITIALIZER_RANGE,
}


def build_model(end: int) -> Qwen3_5ForCausalLM:
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**ARCHITECTURE, bos_token_id=end, eos_token_id=end, pad_token_id=end))
    spread_forgetting(model, end)
    return model


if __name__ == "__main__":
    main(Training(HERE, ARCHITECTURE, build_model, "linear_attn", steps=1500, learning_rate=4e-3), __doc__)
