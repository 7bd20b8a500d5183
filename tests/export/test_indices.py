"""Indices of gathers: 16 bits where these reach all rows of the real table, and not of the one that is traced."""

from pathlib import Path

import pytest
import torch
from figures import psnr
from programs import block_of, export, filled, layer_kind, read_model, small_recipe

from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.logits import choices
from coreai_recipes.primitives.embedding import index_dtype
from coreai_recipes.protobuf import MIL_pb2


@pytest.mark.parametrize(
    ("rows", "dtype"), [(1, "int16"), (32_768, "int16"), (32_769, "uint16"), (65_536, "uint16"), (65_537, None)]
)
def test_the_last_row_decides_about_the_dtype(rows: int, dtype: str | None) -> None:
    assert index_dtype(rows) == dtype


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(131, MIL_pb2.INT16), (40_000, MIL_pb2.UINT16), (70_000, MIL_pb2.INT32)]
)
def test_the_last_tokens_row_is_read(vocab_size: int, dtype: int, cache: FragmentCache, tmp_path: Path) -> None:
    sizes = {"kind": "full", "num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    kind = layer_kind(mlp={"intermediate_size": 16}) | {"attention": sizes}
    recipe = small_recipe({"only": kind}, ["only"], vocab_size=vocab_size, hidden_size=16)
    export(recipe, tmp_path / "p", cache)
    operations = block_of(read_model(tmp_path / "p"), "decode").operations
    types = {out.name: out.type.tensorType.dataType for op in operations for out in op.outputs}
    types["input_ids"] = MIL_pb2.INT32
    indices = [op.inputs["indices"].arguments[0].name for op in operations if op.type == "gather"]
    assert [types[name] for name in indices] == [dtype]
    program, last = Program(tmp_path / "p"), torch.tensor([[vocab_size - 1]], dtype=torch.int32)
    inputs = {"input_ids": last, "position": torch.zeros(1, dtype=torch.int32)}
    outputs = program.function("decode")(inputs, program.make_state())
    with torch.inference_mode():
        assert psnr(filled(recipe)(last)[0], choices(outputs, vocab_size)) >= 90
