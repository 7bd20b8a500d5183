"""Every parameter is bound to the checkpoint's tensors, and what does not fit is said in a line."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_files import pack, save_model, write_folder
from families import gemma4
from gemma4_drafts import gemma4_draft
from named_parameters import FAMILIES, llama_parameters, problems

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.weights.binding import ParameterInfo, bind
from coreai_recipes.weights.names import load_names
from coreai_recipes.weights.rewrite import Rewrite


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
