"""Milliseconds of transformers' own decode step with its cache, in float32.

python -m bench.children.transformers_step FOLDER_OR_GGUF POSITION THREADS STEPS
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from coreai_recipes.checkpoint.open import open_checkpoint

WARM_UP = 5


def load(path: Path) -> Any:
    """transformers' model, filled by our reader: its own needs another package for a GGUF."""
    checkpoint = open_checkpoint(path)
    settings = dict(checkpoint.config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    weights = {name: checkpoint.read(name).float() for name in checkpoint.tensors}
    absent = model.load_state_dict(weights, strict=False).missing_keys
    if absent not in ([], ["lm_head.weight"]):
        raise ValueError(f"{path} lacks {', '.join(absent)}")
    return model.float().eval()


def main(checkpoint: Path, position: int, threads: int, steps: int) -> None:
    torch.set_num_threads(threads)
    model = load(checkpoint)
    ids = torch.arange(1000, 1000 + position + 1)[None]
    taken = []
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(ids[:, :position], past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(WARM_UP + steps):
            started = time.perf_counter()
            logits = model(ids[:, position:], past_key_values=cache, use_cache=True).logits
            taken.append(time.perf_counter() - started)
            cache.crop(-1)
    best = int(logits[0, -1].argmax())
    print(json.dumps({"milliseconds": 1000 * median(taken[WARM_UP:]), "next_token": best}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
