import json
from pathlib import Path

import pytest
import torch
from checkpoint_files import pack, save_model, write_folder
from families import gemma4, gemma4_draft
from family_configs import all_configs

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.weights.binding import ParameterInfo, bind
from coreai_recipes.weights.names import FOLDER, list_names, load_names
from coreai_recipes.weights.rewrite import AS_STORED, Rewrite

# Switches of a family's config under which its random model has every tensor that the family can have.
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {"attention_bias": True},
    "gemma2": {},
    "gemma3": {"model_type": "gemma3_text"},
    "gemma4": {
        "model_type": "gemma4_text",
        "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 99,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 28,
    },
    "gemma4_assistant": {},
}


def llama_parameters(layers: int = 3, kind: str = "full", **changes: tuple[int, ...]) -> dict[str, ParameterInfo]:
    """What our decoder asks of the random Llama of `save_model`; `changes` are shapes by the end of a name."""
    shapes = {
        "attention_norm.weight": (48,), "attention.q.weight": (48, 48), "attention.k.weight": (16, 48),
        "attention.v.weight": (16, 48), "attention.o.weight": (48, 48), "mlp_norm.weight": (48,),
        "mlp.gate.weight": (80, 48), "mlp.up.weight": (80, 48), "mlp.down.weight": (48, 80),
    }  # fmt: skip
    parameters = {"embedding.weight": ParameterInfo((99, 48)), "norm.weight": ParameterInfo((48,))}
    for layer in range(layers):
        for name, shape in (shapes | changes).items():
            parameters[f"layers.{layer}.{name}"] = ParameterInfo(shape, kind)
    return parameters


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> SafetensorsCheckpoint:
    folder = tmp_path_factory.mktemp("llama") / "model"
    save_model(folder, num_hidden_layers=12)
    return SafetensorsCheckpoint(folder)


def save_family(family: str, folder: Path):
    """A random model with every tensor that the family can have; a draft is made for a target."""
    if family == "gemma4_assistant":
        _, model = gemma4_draft(gemma4())
        model.save_pretrained(folder)
        return model
    return save_model(folder, **{"model_type": family, **FAMILIES[family]})


def problems(parameters, names, checkpoint) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        bind(parameters, names, checkpoint)
    assert all(problem.startswith(f"checkpoint {checkpoint.path}: ") for problem in caught.value.problems)
    return [problem.removeprefix(f"checkpoint {checkpoint.path}: ") for problem in caught.value.problems]


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
        ("{stack: [], tensor: h}", "stack: cannot be combined with other operations"),
        ("{stack: h}", "stack: 'h' is not a list of tensors"),
        ('{stack: ["h.{i}.up"]}', "stack: {e}, the expert, is missing: h.{i}.up"),
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


# Tables


def refusal(names: str) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        load_names(names)
    return list(caught.value.problems)


def test_the_shipped_tables_are_the_families_that_the_recipes_need():
    assert {"llama", "mistral", "qwen2", "qwen3"} <= set(list_names())
    assert all((FOLDER / f"{name}.yaml").is_file() for name in list_names())
    used = {recipe_from_config(config, "small").recipe.weights.names for config in all_configs().values()}
    bound = {*FAMILIES, "qwen3_vl_moe"}  # what test_families does not bind is bound here and in test_wrappers
    assert set(list_names()) - used <= bound


def test_an_unknown_family_is_refused_with_the_nearest_name():
    (problem,) = refusal("qwen33")
    assert problem.startswith("weight names `qwen33` are not known (did you mean qwen3?). Built in are ")
    assert problem.endswith("; your own are given by a path that ends with .yaml")
    (problem,) = refusal("/nowhere/mine.yaml")
    assert problem.startswith("/nowhere/mine.yaml: no such file of weight names; the built-in ones are ")


def test_extends_wins_key_by_key_replaces_lists_and_null_says_that_there_is_none(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: llama\nprefixes: [base.]\ntensors: {head.weight: null}")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\ntensors: {norm.weight: base.final.weight}")
    table = load_names(str(tmp_path / "top.yaml"))
    assert table.prefixes == ("base.",)
    assert table.find("norm.weight", "").tensor == "final.weight"
    assert table.find("layers.4.mlp.up.weight", "base.").tensor == "model.layers.4.mlp.up_proj.weight"
    assert table.find("head.weight", "") is None
    checkpoint = SafetensorsCheckpoint(write_folder(tmp_path, pack({}, b"")))
    assert problems({"head.weight": ParameterInfo((9, 4))}, str(tmp_path / "top.yaml"), checkpoint) == [
        f"the weight names `{tmp_path}/top.yaml` name no tensor for the recipe's head.weight"
    ]


def test_a_table_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    assert refusal(str(tmp_path / "a.yaml")) == [f"{tmp_path}/a.yaml: extends itself: a -> b -> a"]


def test_every_mistake_of_a_table_is_reported_at_once(tmp_path):
    path = tmp_path / "names.yaml"
    path.write_text(
        """
prefix: [model.]
ignore: lm_head.weight
tensors:
  norm.weight: 3
  layers.{i}.a.weight: model.layers.0.a
  layers.{i}.b.weight: {tensor: 'h.{i}.b', flip: true}
  layers.{i}.c.weight: {tensor: 'h.{i}.c', rows: ['layers.{i}.d.weight'], transpose: 1}
  layers.{i}.d.weight: {tensor: 'h.{i}.d', squeeze: 2}
  layers.{i}.e.weight: {tensor: 'h.{i}.e', squeeze: 1, transpose: true}
"""
    )
    assert [problem.removeprefix(f"{path}:") for problem in refusal(str(path))] == [
        "2:1: prefix: unknown key (did you mean prefixes?). There are extends, prefixes, ignore, constants, tensors",
        "3:1: ignore: 'lm_head.weight' is not a list of patterns",
        "5:3: norm.weight: is neither null, nor a tensor's name, nor a mapping with `tensor`",
        "6:3: layers.{i}.a.weight: {i}, the layer, must stand on both sides or on neither: model.layers.0.a",
        "7:3: layers.{i}.b.weight: flip: unknown operation. There are tensor, rows, transpose, alternate, take, "
        "squeeze",
        "8:3: layers.{i}.c.weight: transpose: 1 is not true or false",
        "8:3: layers.{i}.c.weight: rows: layers.{i}.c.weight itself is missing",
        "9:3: layers.{i}.d.weight: squeeze: 2 is not 0 or 1",
        "10:3: layers.{i}.e.weight: squeeze: cannot be combined with other operations",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "1:1: must be a mapping with the keys extends, prefixes, ignore, constants, tensors"),
        ("a: ]", "1:4: not YAML: "),
        ("ignore: []\nignore: []", "2:1: `ignore` is a duplicate key"),
    ],
)
def test_a_table_that_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "names.yaml"
    path.write_text(text)
    (problem,) = refusal(str(path))
    assert problem.startswith(f"{path}:{message}")


def test_a_family_with_other_norms_costs_five_lines(tmp_path):
    (tmp_path / "gemma2.yaml").write_text(
        """
extends: llama
tensors:
  layers.{i}.attention_post_norm.weight: model.layers.{i}.post_attention_layernorm.weight
  layers.{i}.mlp_norm.weight: model.layers.{i}.pre_feedforward_layernorm.weight
  layers.{i}.mlp_post_norm.weight: model.layers.{i}.post_feedforward_layernorm.weight
"""
    )
    save_model(tmp_path / "model", "gemma2")
    norms = {f"layers.{i}.{name}_post_norm.weight": (48,) for i in range(3) for name in ("attention", "mlp")}
    one_more = Rewrite(offset=1.0)
    parameters = llama_parameters(3) | {name: ParameterInfo(shape, "full", one_more) for name, shape in norms.items()}
    checkpoint = SafetensorsCheckpoint(tmp_path / "model")
    bindings = bind(parameters, str(tmp_path / "gemma2.yaml"), checkpoint)
    assert {binding.tensor for binding in bindings.values()} == set(checkpoint.tensors)
    theirs = checkpoint.read("model.layers.1.post_attention_layernorm.weight") + 1.0
    assert torch.equal(bindings["layers.1.attention_post_norm.weight"].read(), theirs)
