"""Every parameter is bound to the checkpoint's tensors, and what does not fit is said in a line."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_files import pack, save_model, write_folder
from families import gemma4
from gemma4_drafts import gemma4_draft
from named_parameters import FAMILIES, llama_parameters, problems, refusal

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.weights.binding import ParameterInfo, bind
from coreai_recipes.weights.names import load_names
from coreai_recipes.weights.rewrite import AS_STORED, Rewrite


def save_family(family: str, folder: Path):
    """A random model with every tensor that the family can have; a draft is made for a target."""
    if family == "gemma4_assistant":
        _, model = gemma4_draft(gemma4())
        model.save_pretrained(folder)
        return model
    return save_model(folder, **{"model_type": family, **FAMILIES[family]})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_table_names_every_tensor_of_its_family(family, tmp_path):
    model = save_family(family, tmp_path / "model")
    checkpoint = SafetensorsCheckpoint(tmp_path / "model")
    table, parameters = load_names(family), {}
    for ours, source in table.tensors.items():
        for layer in range(3) if "{i}" in ours else [0]:
            theirs = source.tensor.replace("{i}", str(layer))
            if theirs in checkpoint.tensors:
                parameters[ours.replace("{i}", str(layer))] = ParameterInfo(checkpoint.tensors[theirs].shape, "full")
    bindings = bind(parameters, family, checkpoint)
    assert {binding.tensor for binding in bindings.values()} == set(checkpoint.tensors)
    state = model.state_dict()
    assert all(torch.equal(binding.read(), state[binding.tensor]) for binding in bindings.values())


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
        ("{stack: [], tensor: h}", "stack: cannot be combined with other operations than transpose"),
        ("{stack: h}", "stack: 'h' is not a list of tensors"),
        ('{stack: ["h.{i}.up", "h.{i}.{e}.gate"]}', "stack: {e}, the expert, must stand in all tensors or in none"),
        (
            '{stack: ["h.{i}.{e}.up"], transpose: true}',
            "stack: transpose is for tensors that hold all experts, without {e}",
        ),
        ('{stack: ["h.{i}.up"], transpose: 1}', "transpose: 1 is not true or false"),
        ('{stack: ["h.{e}.up"]}', "{i}, the layer, must stand on both sides or on neither: h.{e}.up"),
    ],
)
def test_a_stack_that_cannot_be_is_refused(tmp_path, entry, problem):
    table = write_table(tmp_path, f"tensors:\n  layers.{{i}}.mlp.gate_up: {entry}\n")
    assert any(line.endswith(problem) for line in refusal(table))


def test_a_decoder_is_bound_to_the_tensors_of_transformers(llama):
    bindings = bind(llama_parameters(12), "llama", llama)
    assert bindings["layers.11.mlp.down.weight"].tensor == "model.layers.11.mlp.down_proj.weight"
    assert bindings["layers.11.mlp.down.weight"].shape == (48, 80)
    assert torch.equal(bindings["embedding.weight"].read(), llama.read("model.embed_tokens.weight"))


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_the_prefix_is_the_one_that_the_checkpoint_uses(tmp_path, prefix):
    from safetensors.torch import save_file

    names = {f"{prefix}embed_tokens.weight": (99, 48), f"{prefix}norm.weight": (48,)}
    write_folder(tmp_path, b"")
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "model.safetensors")
    bindings = bind(llama_parameters(0), "llama", SafetensorsCheckpoint(tmp_path))
    assert [binding.tensor for binding in bindings.values()] == list(names)


def test_an_offset_is_added_in_float32(tmp_path):
    from safetensors.torch import save_file

    write_folder(tmp_path, b"")
    stored = torch.tensor([0.001, -0.5, 3.0]).bfloat16()
    save_file({"model.norm.weight": stored}, tmp_path / "model.safetensors")
    checkpoint = SafetensorsCheckpoint(tmp_path)
    (binding,) = bind({"norm.weight": ParameterInfo((3,), None, Rewrite(offset=1.0))}, "llama", checkpoint).values()
    assert torch.equal(binding.read(), stored.float() + 1.0)
    (binding,) = bind({"norm.weight": ParameterInfo((3,))}, "llama", checkpoint).values()
    assert torch.equal(binding.read(), stored)


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


def test_a_scalar_that_every_model_has_is_checked(tmp_path):
    from safetensors.torch import save_file

    def found(beta: float) -> list[str]:
        write_folder(tmp_path, b"")
        save_file({"h.0.beta": torch.tensor(beta).bfloat16()}, tmp_path / "model.safetensors")
        (tmp_path / "names.yaml").write_text(json.dumps({"constants": {"h.{i}.beta": 0.3}, "tensors": {}}))
        wanted = {"layers.0.mlp": ParameterInfo((4,))}
        return problems(wanted, str(tmp_path / "names.yaml"), SafetensorsCheckpoint(tmp_path))

    missing = f"the weight names `{tmp_path / 'names.yaml'}` do not mention the recipe's layers.0.mlp"
    assert found(0.3) == [missing]
    assert found(0.6) == ["h.0.beta is 0.601562, and 0.3 in every known model", missing]


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


# What does not fit


def test_a_misshapen_tensor_is_one_line_with_both_shapes_and_the_kind(llama):
    parameters = llama_parameters(12)
    parameters["layers.7.attention.k.weight"] = ParameterInfo((32, 48), "full")
    parameters["embedding.weight"] = ParameterInfo((100, 48))
    assert problems(parameters, "llama", llama) == [
        "model.embed_tokens.weight is (99, 48), but the recipe needs (100, 48)",
        "model.layers.7.self_attn.k_proj.weight is (16, 48), but the recipe's kind `full` needs (32, 48)",
    ]


def test_a_missing_tensor_is_one_line_with_its_shape_and_the_kind(llama):
    parameters = llama_parameters(12) | {"layers.2.attention.q_norm.weight": ParameterInfo((8,), "full")}
    parameters |= {"layers.0.attention.o.bias": ParameterInfo((48,), "full")}
    parameters |= {"layers.0.mlp.experts.weight": ParameterInfo((48,), "full")}
    assert problems(parameters, "llama", llama) == [
        "the weight names `llama` do not mention the recipe's layers.0.mlp.experts.weight",
        "the weight names `llama` do not mention the recipe's layers.2.attention.q_norm.weight",
        "model.layers.0.self_attn.o_proj.bias is missing: the recipe's kind `full` needs it as (48,)",
    ]


def test_an_extra_tensor_is_one_line_with_the_parameter_that_the_recipe_lacks(tmp_path):
    save_model(tmp_path / "model", "qwen3", num_hidden_layers=2, attention_bias=True)
    checkpoint = SafetensorsCheckpoint(tmp_path / "model")
    parameters = llama_parameters(2)
    found = problems(parameters, "qwen3", checkpoint)
    assert len(found) == 12
    assert (
        found[0]
        == "model.layers.0.self_attn.k_norm.weight (8,) is extra: the recipe has no layers.0.attention.k_norm.weight"
    )
    assert (
        found[1] == "model.layers.0.self_attn.k_proj.bias (16,) is extra: the recipe has no layers.0.attention.k.bias"
    )
    assert "model.layers.1.self_attn.q_norm.weight (8,) is extra: the weight names `llama` do not list it" in problems(
        parameters, "llama", checkpoint
    )


def test_more_layers_than_the_recipe_has_are_put_together(llama):
    found = problems(llama_parameters(9), "llama", llama)
    assert len(found) == 9
    assert found[0] == (
        "model.layers.9.input_layernorm.weight (48,) is extra: the recipe has no layers.9.attention_norm.weight "
        "(and the same in 2 more layers)"
    )


def test_the_same_problem_in_many_layers_is_one_line(llama):
    found = problems(
        llama_parameters(12, **{"attention.q.weight": (64, 48), "attention.o.weight": (48, 64)}), "llama", llama
    )
    assert found == [
        "model.layers.0.self_attn.o_proj.weight is (48, 48), but the recipe's kind `full` needs (48, 64) "
        "(and the same in 11 more layers)",
        "model.layers.0.self_attn.q_proj.weight is (48, 48), but the recipe's kind `full` needs (64, 48) "
        "(and the same in 11 more layers)",
    ]


def test_another_model_is_called_another_model(tmp_path):
    save_model(tmp_path / "model", "gpt2", n_embd=48, n_head=6, n_layer=3)
    found = problems(llama_parameters(3), "llama", SafetensorsCheckpoint(tmp_path / "model"))
    assert found[0] == (
        "holds another model: none of the 29 tensors that the recipe needs is here "
        "(it has transformer.h.0.attn.c_attn.bias, and its model_type is gpt2)"
    )
    line = "model.layers.0.mlp.up_proj.weight is missing: the recipe's kind `full` needs it as (80, 48)"
    assert f"{line} (and the same in 2 more layers)" in found
    assert len(found) < 40


def test_a_copy_of_a_tied_table_is_no_problem_and_an_untied_head_is(tmp_path):
    from safetensors.torch import save_file

    table = torch.zeros(99, 48)
    write_folder(tmp_path, b"")
    tensors = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone(), "model.norm.weight": torch.ones(48)}
    save_file(tensors, tmp_path / "model.safetensors")
    bind(llama_parameters(0), "llama", SafetensorsCheckpoint(tmp_path))
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": false}')
    checkpoint = SafetensorsCheckpoint(tmp_path)
    assert problems(llama_parameters(0), "llama", checkpoint) == [
        "lm_head.weight is extra: the recipe's head is tied, but config.json has tie_word_embeddings: false"
    ]
    bind(llama_parameters(0) | {"head.weight": ParameterInfo((99, 48))}, "llama", checkpoint)


def test_a_weight_that_is_no_float_is_a_problem_before_anything_is_read(tmp_path):
    header = {"model.norm.weight": {"dtype": "F8_E5M2", "shape": [48], "data_offsets": [0, 48]}}
    checkpoint = SafetensorsCheckpoint(write_folder(tmp_path, pack(header, bytes(48))))
    assert problems({"norm.weight": ParameterInfo((48,))}, "llama", checkpoint) == [
        "model.norm.weight is stored as F8_E5M2, whose scales are not applied: use the release in BF16"
    ]
