"""Indices of gathers: 16 bits where these reach all rows of the real table, and not of the one that is traced."""

from pathlib import Path
from typing import Any

import pytest
import torch
from figures import psnr
from programs import block_of, export, filled, layer_kind, read_model, small_recipe, type_words
from torch import Tensor, nn

from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.export.fragments import FLOAT, Fragment, Port
from coreai_recipes.hosts.logits import choices
from coreai_recipes.primitives.embedding import index_dtype
from coreai_recipes.protobuf import MIL_pb2, Model_pb2
from coreai_recipes.targets.coreml.convert import convert_fragment
from coreai_recipes.targets.coreml.mlpackage import write_model


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


class Chosen(nn.Module):
    """Rows of a table by the best of x, and which of the numbers 0, 1, 2 ... these are."""

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        best = torch.topk(x, 3, dim=1)[1]
        is_chosen = torch.arange(x.shape[1]).view(-1, 1) == best
        return table.index_select(0, best.flatten()), is_chosen.float()


def choosing(count: int, folder: Path) -> tuple[Any, Any]:
    """The program of `Chosen` among `count`, and its function."""
    inputs = {"x": Port(FLOAT, (1, count)), "table": Port(FLOAT, (count, 4))}
    outputs = {"rows": Port(FLOAT, (3, 4)), "is_chosen": Port(FLOAT, (count, 3))}
    model = Model_pb2.Model.FromString(convert_fragment(Fragment("choosing", Chosen(), inputs, outputs, {})))
    write_model(model.SerializeToString(deterministic=True), folder / "p")
    return read_model(folder / "p"), Program(folder / "p").function()


def types_of(model: Any) -> dict[str, list[str]]:
    """What each operation but constants gives, by its type."""
    found: dict[str, list[str]] = {}
    for operation in block_of(model, "main").operations:
        if operation.type != "const":
            found.setdefault(operation.type, []).append(type_words(operation.outputs[-1]))
    return found


@pytest.mark.parametrize("count", [40_000, 65_536, 65_537])
def test_what_is_chosen_has_16_bits_up_to_a_gather_and_32_for_whole_numbers(count: int, tmp_path: Path) -> None:
    """Without a guard against negative places, which the choice never gives."""
    model, function = choosing(count, tmp_path)
    types, is_narrow = types_of(model), count <= 65_536
    word = "uint16" if is_narrow else "int32"
    assert types["topk"] == [f"{word}(1, 3)"]
    assert types["reshape"] == [f"{word}(3)"]
    assert types["cast"] == [*["int32(1, 3)"] * is_narrow, f"float16({count}, 3)"]
    assert types.keys() == {"topk", "reshape", "cast", "gather", "equal"}
    x, table = torch.zeros(1, count), torch.randn(count, 4).half().float()
    x[0, [count - 1, 2049, 33_000]] = torch.tensor([3.0, 2.0, 1.0])
    found = function({"x": x, "table": table})
    assert torch.equal(found["rows"].float(), table[[count - 1, 2049, 33_000]])
    assert found["is_chosen"].float().nonzero().tolist() == [[2049, 1], [33_000, 2], [count - 1, 0]]
