"""Parameters that are parts of a tensor, or several tensors: stacks of experts, shares of fused heads, joined rows."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_files import write_folder
from named_parameters import problems, refusal

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.weights.binding import ParameterInfo, bind
from coreai_recipes.weights.rewrite import AS_STORED, Rewrite


def experts_checkpoint(folder: Path, **tensors: torch.Tensor) -> SafetensorsCheckpoint:
    from safetensors.torch import save_file

    write_folder(folder, b"")
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return SafetensorsCheckpoint(folder)


def write_table(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text)
    return str(path)


STACK = """
tensors:
  layers.{i}.mlp.gate_up: {stack: ["h.{i}.experts.{e}.gate", "h.{i}.experts.{e}.up"]}
"""


def test_tensors_of_experts_are_put_together_one_expert_at_a_time(tmp_path):
    parts = {f"h.1.experts.{e}.{part}": torch.randn(3, 5) for e in range(12) for part in ("gate", "up")}
    checkpoint = experts_checkpoint(tmp_path, **parts)
    wanted = {"layers.1.mlp.gate_up": ParameterInfo((12, 6, 5), "moe")}
    (binding,) = bind(wanted, write_table(tmp_path, STACK), checkpoint).values()
    expected = [torch.cat((parts[f"h.1.experts.{e}.gate"], parts[f"h.1.experts.{e}.up"])) for e in range(12)]
    assert [block.shape for block in binding.blocks()] == [(1, 6, 5)] * 12
    assert torch.equal(binding.read(), torch.stack(expected))


def test_rows_of_experts_are_cut_out_of_tensors_that_hold_all_of_them(tmp_path):
    stored = {f"h.0.{name}": torch.randn(12 * 3, 5) for name in ("w1", "v1", "w2")}
    checkpoint = experts_checkpoint(tmp_path, **stored)
    table = write_table(
        tmp_path,
        """
tensors:
  layers.{i}.mlp.gate_up: {stack: ["h.{i}.w1", "h.{i}.v1"]}
  layers.{i}.mlp.down: {stack: ["h.{i}.w2"], transpose: true}
""",
    )
    shapes = {"gate_up": (12, 6, 5), "down": (12, 5, 3)}
    found = bind({f"layers.0.mlp.{name}": ParameterInfo(shape) for name, shape in shapes.items()}, table, checkpoint)
    w1, v1, w2 = (tensor.view(12, 3, 5) for tensor in stored.values())
    assert torch.equal(found["layers.0.mlp.gate_up"].read(), torch.cat((w1, v1), 1))
    assert torch.equal(found["layers.0.mlp.down"].read(), w2.transpose(1, 2))
    found = problems({"layers.0.mlp.down": ParameterInfo((11, 5, 3), "moe")}, table, checkpoint)
    assert "h.0.w2 is (36, 5), but the recipe's kind `moe` needs (33, 5)" in found


def test_vectors_of_several_tensors_are_rows_of_one_parameter(tmp_path):
    parts = {f"h.0.norms.{e}": torch.randn(5) for e in range(3)}
    table = 'tensors: {"layers.{i}.norm.weight": {stack: ["h.{i}.norms.{e}"]}}'
    checkpoint = experts_checkpoint(tmp_path, **parts)
    wanted = {"layers.0.norm.weight": ParameterInfo((3, 5))}
    (binding,) = bind(wanted, write_table(tmp_path, table), checkpoint).values()
    assert torch.equal(binding.read(), torch.stack(list(parts.values())))


def test_an_expert_that_is_missing_or_misshapen_is_named(tmp_path):
    parts = {f"h.0.experts.{e}.{part}": torch.randn(3, 5) for e in range(2) for part in ("gate", "up")}
    parts["h.0.experts.1.up"] = torch.randn(4, 5)
    checkpoint = experts_checkpoint(tmp_path, **parts)
    wanted = {"layers.0.mlp.gate_up": ParameterInfo((3, 6, 5), "moe")}
    assert problems(wanted, write_table(tmp_path, STACK), checkpoint) == [
        "h.0.experts.1.up is (4, 5), but the recipe's kind `moe` needs (3, 5)",
        "h.0.experts.2.gate is missing: the recipe's kind `moe` needs it as (3, 5)",
        "h.0.experts.2.up is missing: the recipe's kind `moe` needs it as (3, 5)",
    ]


def test_an_axis_of_length_one_is_left_out(tmp_path):
    stored = {"h.0.bias": torch.randn(1, 4), "h.0.taps": torch.randn(6, 1, 3)}
    checkpoint = experts_checkpoint(tmp_path, **stored)
    table = write_table(
        tmp_path,
        """
tensors:
  layers.{i}.mlp.bias: {tensor: "h.{i}.bias", squeeze: 0}
  layers.{i}.mlp.taps: {tensor: "h.{i}.taps", squeeze: 1}
""",
    )
    found = bind(
        {"layers.0.mlp.bias": ParameterInfo((4,)), "layers.0.mlp.taps": ParameterInfo((6, 3))}, table, checkpoint
    )
    assert torch.equal(found["layers.0.mlp.bias"].read(), stored["h.0.bias"][0])
    assert torch.equal(found["layers.0.mlp.taps"].read(), stored["h.0.taps"][:, 0])


def test_experts_in_one_tensor_are_transposed_and_rows_that_alternate_brought_apart(tmp_path):
    stored = {"h.0.gate_up": torch.randn(4, 5, 6), "h.0.bias": torch.randn(4, 6), "h.0.down": torch.randn(4, 3, 5)}
    checkpoint = experts_checkpoint(tmp_path, **stored)
    table = write_table(
        tmp_path,
        """
tensors:
  layers.{i}.mlp.gate_up: {tensor: "h.{i}.gate_up", transpose: true, alternate: true}
  layers.{i}.mlp.gate_up_bias: {tensor: "h.{i}.bias", alternate: true}
  layers.{i}.mlp.down: {tensor: "h.{i}.down", transpose: true}
""",
    )
    shapes = {"gate_up": (4, 6, 5), "gate_up_bias": (4, 6), "down": (4, 5, 3)}
    found = bind({f"layers.0.mlp.{name}": ParameterInfo(shape) for name, shape in shapes.items()}, table, checkpoint)
    apart = [0, 2, 4, 1, 3, 5]
    assert torch.equal(found["layers.0.mlp.gate_up"].read(), stored["h.0.gate_up"].transpose(1, 2)[:, apart])
    assert torch.equal(found["layers.0.mlp.gate_up_bias"].read(), stored["h.0.bias"][:, apart])
    assert torch.equal(found["layers.0.mlp.down"].read(), stored["h.0.down"].transpose(1, 2))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{stack: [], tensor: h}", "stack: cannot be combined with other operations than transpose and or"),
        ("{stack: h}", "stack: 'h' is not a list of tensors"),
        ('{stack: ["h.{i}.up", "h.{i}.{e}.gate"]}', "stack: {e}, the expert, must stand in all tensors or in none"),
        (
            '{stack: ["h.{i}.{e}.up"], transpose: true}',
            "stack: transpose is for tensors that hold all experts, without {e}",
        ),
        ('{stack: ["h.{i}.up"], transpose: 1}', "transpose: 1 is not true or false"),
        ('{stack: ["h.{i}.{e}.up"], or: [h]}', "or: ['h'] is not a tensor's name"),
        ('{stack: ["h.{e}.up"]}', "{i}, the layer, must stand on both sides or on neither: h.{e}.up"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(tmp_path, entry, problem):
    table = write_table(tmp_path, f"tensors:\n  layers.{{i}}.mlp.gate_up: {entry}\n")
    assert any(line.endswith(problem) for line in refusal(table))


GATE_AND_UP = (("gate", 0), ("up", 3))


@pytest.mark.parametrize("is_whole", [False, True])
def test_experts_lie_each_in_its_own_tensors_or_all_in_one(tmp_path, is_whole):
    gate_up = torch.randn(3, 6, 5)
    parts = {f"h.0.{e}.{name}": gate_up[e, first : first + 3].clone() for e in range(3) for name, first in GATE_AND_UP}
    checkpoint = experts_checkpoint(tmp_path, **({"h.0.gate_up": gate_up} if is_whole else parts))
    entry = '{stack: ["h.{i}.{e}.gate", "h.{i}.{e}.up"], or: "h.{i}.gate_up"}'
    table = write_table(tmp_path, f"tensors:\n  layers.{{i}}.mlp.gate_up: {entry}\n")
    (binding,) = bind({"layers.0.mlp.gate_up": ParameterInfo((3, 6, 5))}, table, checkpoint).values()
    assert torch.equal(binding.read(), gate_up)


def fused(tmp_path, order=(0, 1, 2)):
    """q (2 KV heads of 3 queries), k and v, head_dim 4, as each KV head has them; the table, and the parts."""
    from safetensors.torch import save_file

    parts = {"q": torch.randn(2, 12, 5), "k": torch.randn(2, 4, 5), "v": torch.randn(2, 4, 5)}
    write_folder(tmp_path, b"")
    save_file({"h.0.qkv.weight": torch.cat(list(parts.values()), 1).flatten(0, 1)}, tmp_path / "model.safetensors")
    names = [f"layers.{{i}}.{part}" for part in parts]
    listed = [names[place] for place in order]
    tensors = {name: {"tensor": "h.{i}.qkv.weight", "take": listed} for name in names}
    (tmp_path / "names.yaml").write_text(json.dumps({"tensors": tensors}))
    return parts


def bind_fused(tmp_path, parts, kv_heads=2, rewrite=AS_STORED):
    wanted = {
        f"layers.0.{part}": ParameterInfo((tensor.shape[0] * tensor.shape[1], 5), None, rewrite, kv_heads=kv_heads)
        for part, tensor in parts.items()
    }
    return bind(wanted, str(tmp_path / "names.yaml"), SafetensorsCheckpoint(tmp_path))


def test_each_kv_heads_share_is_taken_out_of_a_fused_tensor(tmp_path):
    parts = fused(tmp_path)
    for name, binding in bind_fused(tmp_path, parts).items():
        assert torch.equal(binding.read(), parts[name[-1]].flatten(0, 1)), name


def test_each_query_heads_share_is_taken_where_the_table_says_so(tmp_path):
    from safetensors.torch import save_file

    parts = {"q": torch.randn(6, 4, 5), "gate": torch.randn(6, 4, 5)}
    write_folder(tmp_path, b"")
    save_file({"h.0.q.weight": torch.cat(list(parts.values()), 1).flatten(0, 1)}, tmp_path / "model.safetensors")
    names = [f"layers.{{i}}.{part}" for part in parts]
    tensors = {name: {"tensor": "h.{i}.q.weight", "take": names, "of": "heads"} for name in names}
    (tmp_path / "names.yaml").write_text(json.dumps({"tensors": tensors}))
    wanted = {f"layers.0.{part}": ParameterInfo((24, 5), heads=6, kv_heads=2) for part in parts}
    for name, binding in bind(wanted, str(tmp_path / "names.yaml"), SafetensorsCheckpoint(tmp_path)).items():
        assert torch.equal(binding.read(), parts[name.rpartition(".")[2]].flatten(0, 1)), name


@pytest.mark.parametrize("name", ["h.0.norm", "h.0.ln"])
def test_a_tensor_is_read_by_the_other_name_where_the_first_is_missing(tmp_path, name):
    checkpoint = experts_checkpoint(tmp_path, **{name: torch.randn(5)})
    table = 'tensors: {"layers.{i}.norm.weight": {tensor: "h.{i}.norm", or: "h.{i}.ln"}}'
    (binding,) = bind({"layers.0.norm.weight": ParameterInfo((5,))}, write_table(tmp_path, table), checkpoint).values()
    assert binding.tensor == name


JOIN = """
tensors:
  layers.{i}.conv.weight: {join: ["h.{i}.q_conv", "h.{i}.k_conv", "h.{i}.v_conv"]}
"""


def joined(tmp_path, **changes):
    parts = {"h.0.q_conv": torch.randn(3, 1, 4), "h.0.k_conv": torch.randn(3, 1, 4), "h.0.v_conv": torch.randn(5, 1, 4)}
    checkpoint = experts_checkpoint(tmp_path, **{**parts, **changes})
    wanted = {"layers.0.conv.weight": ParameterInfo((11, 1, 4), "delta")}
    (binding,) = bind(wanted, write_table(tmp_path, JOIN), checkpoint).values()
    return parts, binding


def test_rows_of_several_tensors_are_one_parameter(tmp_path):
    parts, binding = joined(tmp_path)
    assert torch.equal(binding.read(), torch.cat(list(parts.values())))
    assert binding.tensors == parts.keys()


def test_tensors_that_have_other_rows_together_are_named(tmp_path):
    with pytest.raises(CheckpointError) as raised:
        joined(tmp_path, **{"h.0.v_conv": torch.randn(6, 1, 4)})
    assert "h.0.q_conv is (3, 1, 4), but the recipe's kind `delta` needs (11, 1, 4) of h.0.q_conv, h.0.k_conv" in str(
        raised.value
    )


def test_shares_of_heads_are_taken_where_there_are_fewer_than_kv_heads(tmp_path):
    parts = fused(tmp_path)
    table = json.loads((tmp_path / "names.yaml").read_text())
    for entry in table["tensors"].values():
        entry["shares"] = 2
    (tmp_path / "names.yaml").write_text(json.dumps(table))
    for name, binding in bind_fused(tmp_path, parts, kv_heads=4).items():
        assert torch.equal(binding.read(), parts[name[-1]].flatten(0, 1)), name


def test_heads_that_are_taken_are_folded_too(tmp_path):
    parts = fused(tmp_path)
    bindings = bind_fused(tmp_path, parts, rewrite=Rewrite(row_order=(0, 2, 1, 3)))
    for name, binding in bindings.items():
        expected = parts[name[-1]].view(-1, 4, 5)[:, [0, 2, 1, 3]].reshape(-1, 5)
        assert torch.equal(binding.read(), expected), name


def test_another_order_or_number_of_heads_gives_other_rows(tmp_path):
    parts = fused(tmp_path, order=(0, 2, 1))
    assert not torch.equal(bind_fused(tmp_path, parts)["layers.0.k"].read(), parts["k"].flatten(0, 1))
    parts = fused(tmp_path)
    assert not torch.equal(bind_fused(tmp_path, parts, kv_heads=1)["layers.0.k"].read(), parts["k"].flatten(0, 1))


def test_rows_of_a_stacked_tensor_and_a_transposed_one_are_cut_by_our_shapes(tmp_path):
    from safetensors.torch import save_file

    stacked, columns = torch.randn(2, 16, 5), torch.randn(2, 5, 16)
    write_folder(tmp_path, b"")
    tensors = {f"h.{i}.qkv.weight": stacked[i].clone() for i in range(2)}
    tensors |= {f"h.{i}.c_attn.weight": columns[i].clone() for i in range(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    parts = {"q": (0, 8), "k": (8, 12), "v": (12, 16)}
    stack = [f"layers.{{i}}.{part}" for part in parts]
    for name, source in [("rows", {"tensor": "h.{i}.qkv.weight"}), ("both", {"tensor": "h.{i}.c_attn.weight"})]:
        entry = source | {"rows": stack, "transpose": name == "both"}
        table = {"ignore": ["*.c_attn.*", "*.qkv.*"], "tensors": dict.fromkeys(stack, entry)}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(table))
    parameters = {
        f"layers.{i}.{part}": ParameterInfo((b - a, 5), "full") for i in range(2) for part, (a, b) in parts.items()
    }
    checkpoint = SafetensorsCheckpoint(tmp_path)
    rows = bind(parameters, str(tmp_path / "rows.yaml"), checkpoint)
    both = bind(parameters, str(tmp_path / "both.yaml"), checkpoint)
    for i in range(2):
        for part, (a, b) in parts.items():
            assert torch.equal(rows[f"layers.{i}.{part}"].read(), stacked[i, a:b])
            assert torch.equal(both[f"layers.{i}.{part}"].read(), columns[i].t()[a:b])
    parameters["layers.1.v"] = ParameterInfo((5, 5), "full")
    assert problems(parameters, str(tmp_path / "both.yaml"), checkpoint) == [
        "h.1.c_attn.weight is (5, 16), but the recipe's kind `full` needs (5, 17)"
    ]
