"""Transformers' own modules, small and random, converted by coremltools in the plain way: `MODEL_TYPE PACKAGE`."""

import sys
from pathlib import Path
from typing import Any

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 20000, "max_position_embeddings": 256,
}  # fmt: skip
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 20000, "n_positions": 256}
QUERIES = 32


def convert(model_type: str, package: Path) -> None:
    import coremltools as ct
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = GPT2 if model_type == "gpt2" else SMALL
    config = AutoConfig.for_model(model_type, **sizes, **({"head_dim": 16} if "gemma" in model_type else {}))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, seen: Any) -> Any:
            lowest, count = torch.finfo(torch.float32).min, ids.shape[1]
            causal = torch.full((count, count), lowest).triu(1)[None, None]
            mask = causal + (1 - seen[:, None, None, :].float()) * lowest
            positions = torch.arange(count)[None]
            return self.model(ids.long(), attention_mask=mask, position_ids=positions, use_cache=False).logits

    example = torch.ones(1, QUERIES, dtype=torch.int32)
    with torch.no_grad():
        traced = torch.jit.trace(Plain(), (example, example), check_trace=False)
    inputs = [ct.TensorType(name, (1, QUERIES), np.int32) for name in ("ids", "seen")]
    converted = ct.convert(traced, inputs=inputs, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    converted.save(str(package))


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]))
