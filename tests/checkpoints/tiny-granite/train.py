"""Train tiny-granite, a small Granite 4 hybrid of Mamba-2 layers and attention, and save it beside this file.

apt-get install bible-kjv && python train.py
bible -f gen1:1-rev22:21 > kjv.txt && python train.py --text kjv.txt --out elsewhere

The loop is in ../training.py; the text, its split and its tokenizer are those of examples/gemma4-tiny/train.py.
"""

import sys
from pathlib import Path

from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from training import INITIALIZER_RANGE, Training, main, spread_forgetting  # noqa: E402

ARCHITECTURE = {
    "vocab_size": 512,
    "hidden_size": 160,
    "shared_intermediate_size": 384,
    "num_local_experts": 0,
    "num_hidden_layers": 4,
    "layer_types": ["mamba"] * 3 + ["attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mamba_n_heads": 10,
    "mamba_d_head": 32,
    "mamba_expand": 2,
    "mamba_d_state": 32,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 64,
    "position_embedding_type": None,  # order is known by the recurrence alone, as in Granite 4
    "embedding_multiplier": 12.0,  # these four as in granite-4.0, the second as its rule for heads of this size
    "attention_multiplier": 1 / 40,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "initializer_range": INITIALIZER_RANGE,
}


def build_model(end: int) -> GraniteMoeHybridForCausalLM:
    config = GraniteMoeHybridConfig(**ARCHITECTURE, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model = GraniteMoeHybridForCausalLM(config)
    spread_forgetting(model, end)
    return model


if __name__ == "__main__":
    main(Training(HERE, ARCHITECTURE, build_model, "mamba", steps=1000, learning_rate=4e-3), __doc__)
