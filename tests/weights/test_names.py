"""The tables of names: which there are, how they extend one another, and every mistake in one."""

import pytest
import torch
import yaml
from checkpoint_files import pack, save_model, write_folder
from family_configs import all_configs
from named_parameters import FAMILIES, llama_parameters, problems, refusal

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.weights.binding import ParameterInfo, bind
from coreai_recipes.weights.names import FOLDER, list_names, load_names
from coreai_recipes.weights.rewrite import Rewrite


def test_the_shipped_tables_are_the_families_that_the_recipes_need():
    assert {"llama", "mistral", "qwen2", "qwen3"} <= set(list_names())
    assert all((FOLDER / f"{name}.yaml").is_file() for name in list_names())
    used = {recipe_from_config(config, "small").recipe.weights.names for config in all_configs().values()}
    extended = {
        yaml.safe_load(path.read_text()).get("extends") for path in FOLDER.glob("*.yaml")
    }  # bound where the others are
    bound = {
        *FAMILIES,
        *extended,
        "qwen3_vl_moe",
    }  # what test_families does not bind is bound here and in test_wrappers
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
  layers.{i}.d.weight: {tensor: 'h.{i}.d', squeeze: [1, 0]}
  layers.{i}.e.weight: {tensor: 'h.{i}.e', squeeze: 1, transpose: true}
"""
    )
    assert [problem.removeprefix(f"{path}:") for problem in refusal(str(path))] == [
        "2:1: prefix: unknown key (did you mean prefixes?). There are extends, prefixes, ignore, constants, tensors",
        "3:1: ignore: 'lm_head.weight' is not a list of patterns",
        "5:3: norm.weight: is neither null, nor a tensor's name, nor a mapping with `tensor`",
        "6:3: layers.{i}.a.weight: {i}, the layer, must stand on both sides or on neither: model.layers.0.a",
        "7:3: layers.{i}.b.weight: flip: unknown operation. There are tensor, rows, transpose, alternate, take, "
        "of, or, squeeze, absent, shares",
        "8:3: layers.{i}.c.weight: transpose: 1 is not true or false",
        "8:3: layers.{i}.c.weight: rows: layers.{i}.c.weight itself is missing",
        "9:3: layers.{i}.d.weight: squeeze: [1, 0] is not an axis, or several in their order",
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
