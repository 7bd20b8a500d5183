"""SmolLM2 rotated: the same model to rounding, whose weights lie on no grid of an earlier quantisation.

Its checkpoint is a Q4_1 file, and int4 for blocks of 32 loses little on such weights. Norms take their weights into the
matrices behind them; then the residual stream is turned by a random orthogonal matrix R, and so are the values of each
head of keys, in everything that writes or reads them (Ashkboos et al., QuaRot, 2024). A table that is the head too can
take up only one of the two, so the head becomes a matrix of its own.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.recipe import Recipe, load_recipe

SEED = 20240301
TABLE, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def rotated(checkpoint: Checkpoint, folder: Path) -> tuple[Recipe, Checkpoint]:
    """SmolLM2 as `checkpoint` has it, rotated in float64, rounded to float16 and written into `folder`."""
    recipe = load_recipe("smollm2-135m", ["model.head.tied=false"])
    kind = recipe.model.kinds[recipe.model.layer_kinds[0]]
    draw = np.random.default_rng(SEED)
    turn = orthogonal(recipe.model.hidden_size, draw)
    found = {TABLE: read(checkpoint, TABLE) @ turn, HEAD: read(checkpoint, TABLE) * read(checkpoint, NORM) @ turn}
    found[NORM] = torch.ones(len(turn))
    for index in range(len(recipe.model.layer_kinds)):
        of = f"model.layers.{index}."
        for norm, readers in {
            "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
        }.items():
            scale = read(checkpoint, f"{of}{norm}.weight")
            for reader in readers:
                found[f"{of}{reader}.weight"] = read(checkpoint, f"{of}{reader}.weight") * scale @ turn
            found[f"{of}{norm}.weight"] = torch.ones(len(turn))
        for writer in ("self_attn.o_proj", "mlp.down_proj"):
            found[f"{of}{writer}.weight"] = turn.t() @ read(checkpoint, f"{of}{writer}.weight")
        turn_values(found, of, kind.attention.num_heads, kind.attention.num_kv_heads, draw)
    folder.mkdir()
    save_file({name: each.half().contiguous() for name, each in found.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**checkpoint.config, "tie_word_embeddings": False}))
    checkpoint.write_tokenizer(folder)
    return recipe, open_checkpoint(str(folder))


def turn_values(found: dict[str, Tensor], of: str, heads: int, kv_heads: int, draw: np.random.Generator) -> None:
    """The values of each head of keys by a matrix of its own, which the columns of the heads that read it undo."""
    values, last = found[f"{of}self_attn.v_proj.weight"], found[f"{of}self_attn.o_proj.weight"]
    size = len(values) // kv_heads
    for head in range(kv_heads):
        turn = orthogonal(size, draw)
        rows = slice(head * size, (head + 1) * size)
        values[rows] = turn.t() @ values[rows]
        for reader in range(head * heads // kv_heads, (head + 1) * heads // kv_heads):
            columns = slice(reader * size, (reader + 1) * size)
            last[:, columns] = last[:, columns] @ turn


def orthogonal(size: int, draw: np.random.Generator) -> Tensor:
    """A random orthogonal matrix, float64: no direction is likelier than another (Mezzadri, 2007)."""
    found, upper = np.linalg.qr(draw.standard_normal((size, size)))
    return torch.from_numpy(found * np.sign(np.diag(upper)))


def read(checkpoint: Checkpoint, tensor: str) -> Tensor:
    return checkpoint.read(tensor).double()
