"""Adapters are merged as peft merges them, to the bit; what is no LoRA, or of another model, is a sentence."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_adapters import save_adapter, tiny_llama
from small_models import small_model

from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint
from coreai_recipes.checkpoint.adapter import CONFIG, WEIGHTS, Adapter
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.errors import CheckpointError

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 5, "down_proj": 2},
        "alpha_pattern": {r".*\.1\.mlp\.down_proj": 11},
        "use_rslora": True,
    },
    "a regular expression": {"target_modules": r".*\.1\.(self_attn\.[vo]|mlp\.up)_proj"},
    "some layers": {"layers_to_transform": [1]},
    "all": {"target_modules": "all-linear"},
    "dora": {"use_dora": True},
    "dora, rslora": {"use_dora": True, "use_rslora": True, "target_modules": ["k_proj", "gate_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small Llama and its folder."""
    model, folder = tiny_llama(), tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return model, folder


def merged(folder: Path, *adapters: tuple[Path, float]) -> AdaptedCheckpoint:
    return AdaptedCheckpoint(open_checkpoint(folder), [(Adapter(path), factor) for path, factor in adapters])


def hold(ours: AdaptedCheckpoint, theirs: Any, least: int) -> None:
    """Every tensor, whole and in rows that do not begin at 0."""
    stored = theirs.state_dict()
    for name in ours.tensors:
        assert torch.equal(ours.read(name).float(), stored[name]), name
        rows = range(1, min(7, len(stored[name])))
        assert torch.equal(ours.read(name, rows).float(), stored[name][1:7]), name
    changed = [name for name in ours.tensors if not torch.equal(stored[name], ours.base.read(name).float())]
    assert len(changed) >= least


@pytest.mark.parametrize("named", SETTINGS)
def test_a_merge_is_that_of_peft_to_the_bit(named: str, base: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = base
    wrapped = save_adapter(model, tmp_path, **SETTINGS[named])
    hold(merged(folder, (tmp_path, 1.0)), wrapped.merge_and_unload(), least=2)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_a_matrix_that_is_stored_across_is_merged_across(settings: dict[str, Any], tmp_path: Path) -> None:
    """GPT-2's c_proj is square, so that its shape does not say which way it lies."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = small_model(GPT2LMHeadModel, GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4))
    model.save_pretrained(tmp_path / "base")
    given = {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True, **settings}
    wrapped = save_adapter(model, tmp_path / "adapter", **given)
    hold(merged(tmp_path / "base", (tmp_path / "adapter", 1.0)), wrapped.merge_and_unload(), least=4)


def test_adapters_add_up_each_with_its_factor(base: tuple[Any, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    model, folder = base
    save_adapter(model, tmp_path / "one")
    save_adapter(model, tmp_path / "two", seed=2, target_modules=["q_proj", "k_proj"])
    theirs = model
    for name, factor in (("one", 0.5), ("two", -2.0)):
        wrapped = PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / name)
        for module in wrapped.modules():
            if hasattr(module, "scale_layer"):
                module.scale_layer(factor)
        theirs = wrapped.merge_and_unload()
    ours = merged(folder, (tmp_path / "one", 0.5), (tmp_path / "two", -2.0))
    stored = theirs.state_dict()
    for name in ours.tensors:
        torch.testing.assert_close(ours.read(name).float(), stored[name], rtol=0, atol=1e-6)


def rewrite(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def without_b(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = sorted(name for name in tensors if "q_proj.lora_B" in name)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, folder / WEIGHTS)


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda at: (at / CONFIG).unlink(), "is no adapter: it has no adapter_config.json"),
    "no weights": (
        lambda at: (at / WEIGHTS).unlink(),
        "has no adapter_model.safetensors; a pickle is not read: save it with safetensors",
    ),
    "another kind": (lambda at: rewrite(at, peft_type="LOHA"), "adapter_config.json: peft_type 'LOHA' is no LORA"),
    "whole modules": (
        lambda at: rewrite(at, modules_to_save=["lm_head"]),
        "adapter_config.json: modules_to_save: ['lm_head'] is not supported: merge it into its base with peft first",
    ),
    "a base that was changed": (
        lambda at: rewrite(at, init_lora_weights="pissa"),
        "adapter_config.json: init_lora_weights: 'pissa' changed its base: save it with "
        "path_initial_model_for_weight_conversion, as peft's documentation says",
    ),
    "another rank": (
        lambda at: rewrite(at, r=4, rank_pattern={"down_proj": 3, "1.self_attn.q_proj": 3}),
        "model.layers.0.self_attn.q_proj: A is (3, 24) and B is (24, 3), and the rank is 4",
    ),
    "a half": (without_b, "model.layers.0.self_attn.q_proj: lora_B is missing"),
    "other targets": (
        lambda at: rewrite(at, target_modules=["q_proj"]),
        "model.layers.0.mlp.down_proj: its config targets no such module: target_modules is ['q_proj']",
    ),
    "a pattern without end": (
        lambda at: rewrite(at, target_modules=r"(.*)*_proj"),
        "model.layers.0.mlp.down_proj: target_modules repeats too much for a pattern of names: (.*)*_proj",
    ),
    "no pattern": (
        lambda at: rewrite(at, target_modules="q_proj["),
        "model.layers.0.mlp.down_proj: target_modules is no pattern: unterminated character set at position 6",
    ),
    "no number": (lambda at: rewrite(at, lora_alpha="5"), "adapter_config.json: lora_alpha is no number above 0"),
}


@pytest.mark.parametrize("named", MISTAKES)
def test_what_is_wrong_with_an_adapter_is_a_sentence(named: str, base: tuple[Any, Path], tmp_path: Path) -> None:
    save_adapter(base[0], tmp_path)
    Adapter(tmp_path)
    spoil, said = MISTAKES[named]
    spoil(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        Adapter(tmp_path)
    assert refused.value.problems[0] == f"adapter {tmp_path}: {said}"


def test_an_adapter_of_another_model_is_refused_with_the_matrix(base: tuple[Any, Path], tmp_path: Path) -> None:
    save_adapter(tiny_llama(hidden_size=32, head_dim=8), tmp_path / "wider")
    with pytest.raises(CheckpointError) as refused:
        merged(base[1], (tmp_path / "wider", 1.0))
    assert refused.value.problems == (
        f"adapter {tmp_path / 'wider'}: model.layers.0.mlp.down_proj: it is for a matrix (32, 40), and its base has "
        "(24, 40), and 3 others fit no better: this is an adapter of another model",
    )
    save_adapter(base[0], tmp_path / "named")
    rewrite(tmp_path / "named", base_model_name_or_path="org/one")
    checkpoint = open_checkpoint(base[1])
    checkpoint.source = "org/other@abc"
    with pytest.raises(CheckpointError, match="was trained on org/one, and the checkpoint is org/other"):
        AdaptedCheckpoint(checkpoint, [(Adapter(tmp_path / "named"), 1.0)])
