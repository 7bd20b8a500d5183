"""Blocks of a GGUF file's types."""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from gguf_configs import CONFIGS

LLAMA = CONFIGS["llama"][1]


def write_one_tensor(path: Path, stored: str, raw: np.ndarray, kind: GGMLQuantizationType) -> Path:
    """A one-layer Llama with 256 wide rows, all of whose other tensors are left out."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a"])
    writer.add_tensor("token_embd.weight", np.zeros((1, 256), np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(256, np.float32))
    writer.add_tensor(stored, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
