"""Write a checkpoint of a recipe's shape with random weights, bfloat16 in shards, as transformers and we read it.

A tensor is made and written in blocks, so that memory stays flat: a Gemma 4 E2B is 9.3 GB.

    python -m bench.children.random_shards FOLDER RECIPE [KEY=VALUE...]
"""

import json
import struct
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch

from bench.children.make_checkpoint import write_tokenizer
from coreai_recipes import load_recipe
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint

SHARD_BYTES = 2_000_000_000  # a tensor that is larger is a shard of its own


def split_into_shards(checkpoint: RandomCheckpoint) -> list[list[str]]:
    """The names of each shard's tensors, in the order of the checkpoint."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, info in checkpoint.tensors.items():
        size = 2 * prod(info.shape)
        if shards[-1] and held + size > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def write_shard(path: Path, checkpoint: RandomCheckpoint, names: list[str]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        shape = checkpoint.tensors[name].shape
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in names:
            for block in checkpoint.blocks(name):
                file.write(block.to(torch.bfloat16).reshape(-1).view(torch.int16).numpy().data)


def main(folder: Path, recipe: str, overrides: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = RandomCheckpoint(load_recipe(recipe, overrides))
    config = {**checkpoint.config, "torch_dtype": "bfloat16", "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(folder)
    shards = split_into_shards(checkpoint)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, checkpoint, names)
        index |= dict.fromkeys(names, file)
    size = sum(2 * prod(info.shape) for info in checkpoint.tensors.values())
    document = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    print(json.dumps({"bytes": size, "shards": len(shards)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
