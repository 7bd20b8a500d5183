"""Stages stream: the peak does not grow with the number of layers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
HIDDEN, INTERMEDIATE, HEADS, VOCAB = 512, 1536, 8, 97
# Run by itself, because a peak is a process's own.
MEASURE = """
import resource, sys, torch
from pathlib import Path
from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.recipe import Recipe
from coreai_recipes.verification import memory, run_stages

memory.free_bytes = lambda: 0  # no whole model
torch.set_num_threads(1)
folder = Path(sys.argv[1])
recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
report = run_stages(recipe, open_checkpoint(folder), None, stages=["torch"])
assert report.passed, report.to_json()
status = Path("/proc/self/status")
if status.exists():  # a child inherits its parent's ru_maxrss, but not its VmHWM
    print(next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_peak_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    peaks = {layers: measure_peak(tmp_path / str(layers), layers) for layers in (4, 16)}
    layer_bytes = 4 * sum(tensor.numel() for tensor in layer_tensors(0).values())
    assert layer_bytes > 12e6, "large enough to be told from the noise"
    assert peaks[16] - peaks[4] < 2 * layer_bytes, f"{peaks}: a layer takes {layer_bytes}"


def measure_peak(folder: Path, layers: int) -> int:
    folder.mkdir()
    tensors = {name: tensor for index in range(layers) for name, tensor in layer_tensors(index).items()}
    tensors["model.embed_tokens.weight"] = torch.randn(VOCAB, HIDDEN).to(torch.bfloat16)
    tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(layers)))
    (folder / "recipe.json").write_text(json.dumps(recipe(layers)))
    run = [sys.executable, "-c", MEASURE, str(folder)]
    # every tensor in pages of its own: otherwise glibc's heap keeps holes, 4 MB a layer, whatever we hold
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return int(done.stdout)


def layer_tensors(index: int) -> dict[str, torch.Tensor]:
    shapes = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
    shapes |= {"mlp.down_proj": (HIDDEN, INTERMEDIATE)}
    generator = torch.Generator().manual_seed(index)
    tensors = {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}
    tensors |= {name: torch.ones(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")}
    return {f"model.layers.{index}.{name}.weight": tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def config(layers: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }


def recipe(layers: int) -> dict[str, Any]:
    attention = {"kind": "full", "num_heads": HEADS, "num_kv_heads": HEADS, "head_dim": HIDDEN // HEADS}
    mlp = {"kind": "gated", "activation": "silu", "intermediate_size": INTERMEDIATE}
    kind = {"attention": attention, "rotary": {"kind": "full", "theta": 10000.0}, "mlp": mlp}
    return {
        "recipe": 1,
        "name": "many-layers",
        "reference": {"model_type": "llama"},
        "model": {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "norm": {"kind": "rms", "eps": 1e-5},
            "head": {"tied": True},
            "kinds": {"full": kind},
            "layers": [{"repeat": layers, "of": ["full"]}],
        },
        "weights": {"names": "llama"},
        "export": {"context": 64},
    }
