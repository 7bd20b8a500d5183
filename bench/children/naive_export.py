"""What a user must do today: transformers' model with a cache of states, traced and converted whole for each function.

The form is that of Apple's own example (Mistral 7B with Core ML, 2024): from_pretrained, a cache whose `update` writes
a slice of two buffers, torch.jit.trace, ct.convert with those buffers as states, save_multifunction. Shapes are static
and the passes coremltools' default ones, so that the package has the functions, states and dtypes of ours.

    python -m bench.children.naive_export CHECKPOINT OUT CONTEXT PREFILL
"""

import gc
import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import coremltools as ct  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.cache_utils import Cache  # noqa: E402

IMPORTED = time.perf_counter()
HIDDEN = -1e4


class SliceUpdateCache(Cache):  # type: ignore[misc]
    """Keys and values of all layers, two tensors (layers, 1, KV heads, rows, head_dim), written from `position` on."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__(layers=[])
        self.states, self.position = (keys, values), position

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        first = self.position[0]
        for state, new in zip(self.states, (keys, values), strict=True):
            state[layer, :, :, first : first + new.shape[2], :] = new
        return self.states[0][layer], self.states[1][layer]


class StatefulModel(nn.Module):
    """The inputs and outputs of our package around transformers' model."""

    k_cache: Tensor
    v_cache: Tensor
    rows: Tensor
    steps: Tensor

    def __init__(self, model: Any, context: int, queries: int) -> None:
        super().__init__()
        self.model, config = model, model.config
        shape = (config.num_hidden_layers, 1, config.num_key_value_heads, context, config.head_dim)
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))
        self.register_buffer("rows", torch.arange(context, dtype=torch.int32))
        self.register_buffer("steps", torch.arange(queries, dtype=torch.int32))

    def forward(self, input_ids: Tensor, position: Tensor, count: Tensor | None = None) -> Tensor:
        positions = position + self.steps
        mask = (self.rows > positions.unsqueeze(1)).float() * HIDDEN
        hidden = self.model.model(
            input_ids=input_ids,
            attention_mask={"full_attention": mask[None, None]},
            position_ids=positions.unsqueeze(0),
            past_key_values=SliceUpdateCache(self.k_cache, self.v_cache, position),
            use_cache=True,
        ).last_hidden_state
        if count is not None:
            hidden = hidden.index_select(1, count - 1)
        return self.model.lm_head(hidden)  # type: ignore[no-any-return]


def convert(model: Any, context: int, queries: int, path: Path) -> None:
    """Trace and convert one function whole, and save its package."""
    module = StatefulModel(model, context, queries).eval()
    example = [torch.ones(1, queries, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)]
    names = ["input_ids", "position"]
    if queries > 1:
        example.append(torch.ones(1, dtype=torch.int32))
        names.append("count")
    with torch.no_grad():
        traced = torch.jit.trace(module, tuple(example), check_trace=False)
    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=tuple(state.shape), dtype=np.float16), name=name)
        for name, state in (("k_cache", module.k_cache), ("v_cache", module.v_cache))
    ]
    converted = ct.convert(
        traced,
        inputs=[
            ct.TensorType(name=name, shape=tuple(value.shape), dtype=np.int32)
            for name, value in zip(names, example, strict=True)
        ],
        outputs=[ct.TensorType(name="logits", dtype=np.float16)],
        states=states,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    converted.save(str(path))


def main(checkpoint: Path, out: Path, context: int, prefill: int) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    seconds = {"imports": IMPORTED - STARTED}
    lap = time.perf_counter()

    def end_of(step: str) -> None:
        nonlocal lap
        now = time.perf_counter()
        seconds[step] = now - lap
        lap = now

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    end_of("load")
    functions = MultiFunctionDescriptor()
    for name, queries in (("prefill", prefill), ("decode", 1)):
        path = out / f"{name}.mlpackage"
        convert(model, context, queries, path)
        gc.collect()  # the second conversion is not to pay for what the first left
        functions.add_function(str(path), "main", name)
        end_of(name)
    del model
    gc.collect()
    functions.default_function_name = "decode"
    save_multifunction(functions, str(out / "model.mlpackage"))
    end_of("save_multifunction")
    size = sum(file.stat().st_size for file in (out / "model.mlpackage").rglob("*") if file.is_file())
    print(json.dumps({"seconds": seconds, "bytes": size}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
