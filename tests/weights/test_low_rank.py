"""The two matrices that an adapter adds to one of ours: their product is what a merge adds, in every order and form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import save_adapter, tiny_llama
from small_models import small_model

from coreai_recipes.checkpoint.adapted import Unmerged
from coreai_recipes.checkpoint.adapter import Adapter
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.low_rank import input_values, low_rank_specs, matrices_of_layers
from coreai_recipes.decoder.model import Decoder, build_decoder, exported_form
from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.schema import LowRank
from coreai_recipes.weights.low_rank import bind_low_rank


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return small_model(GPT2LMHeadModel, GPT2Config(vocab_size=50, n_positions=64, n_embd=24, n_layer=2, n_head=4))


def gpt_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    return small_model(GPTNeoXForCausalLM, GPTNeoXConfig(vocab_size=50, **sizes))


def phi3() -> Any:
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    return small_model(Phi3ForCausalLM, Phi3Config(vocab_size=50, num_key_value_heads=2, pad_token_id=0, **sizes))


def cohere() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    return small_model(CohereForCausalLM, CohereConfig(vocab_size=50, num_key_value_heads=2, **sizes))


# what is stored across and split, dealt out among heads, split, and turned in pairs that lie apart when exported
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (tiny_llama, "all-linear"),
    "gpt2": (gpt2, ["c_attn", "mlp.c_proj"]),
    "gpt_neox": (gpt_neox, ["query_key_value", "dense"]),
    "phi3": (phi3, ["qkv_proj", "gate_up_proj"]),
    "cohere": (cohere, ["q_proj", "k_proj", "o_proj"]),
}


def made(name: str, folder: Path) -> tuple[Recipe, Checkpoint, Unmerged]:
    """A small model, and an adapter of it."""
    make, targets = FAMILIES[name]
    model = make()
    model.save_pretrained(folder / "base")
    save_adapter(model, folder / "adapter", target_modules=targets, fan_in_fan_out=name == "gpt2")
    base = open_checkpoint(folder / "base")
    recipe = recipe_from_config(base.config, "small").recipe
    export = recipe.export.model_copy(update={"residual_scale": 0.25})
    recipe = recipe.model_copy(update={"export": export})
    return recipe, base, Unmerged(base, Adapter(folder / "adapter"), -0.5)


def bound(decoder: Decoder, base: Checkpoint, adapter: Unmerged) -> dict[str, Any]:
    return bind_low_rank(bind_weights(decoder, base), adapter.alone, matrices_of_layers(decoder.recipe))


@pytest.mark.parametrize("name", FAMILIES)
def test_their_product_is_what_a_merge_adds(name: str, tmp_path: Path) -> None:
    recipe, base, adapter = made(name, tmp_path)
    decoder = build_decoder(recipe, exported_form(recipe))
    plain, merged = bind_weights(decoder, base), bind_weights(decoder, adapter.merged)
    found = bound(decoder, base, adapter)
    assert len(found) >= 4
    for parameter, binding in plain.items():
        added = merged[parameter].read().float() - binding.read().float()
        matrix = parameter.removesuffix(".weight")
        if matrix in found:
            a, b = found[matrix].read()
            torch.testing.assert_close((b @ a).reshape(added.shape), added, rtol=1e-4, atol=2e-5)
            assert added.abs().max() > 1e-3
        else:
            assert not added.any(), parameter


def test_inputs_hold_each_layer_in_its_place(tmp_path: Path) -> None:
    """And zeros where an adapter has less: fewer ranks, and matrices that it leaves as they are."""
    recipe, base, adapter = made("llama", tmp_path)
    decoder = build_decoder(recipe)
    factors = {matrix: each.read() for matrix, each in bound(decoder, base, adapter).items() if ".1." in matrix}
    low_rank = LowRank(rank=5, matrices=["attention.q", "mlp.down"])
    export = recipe.export.model_copy(update={"low_rank": low_rank})
    specs = low_rank_specs(recipe.model_copy(update={"export": export}))
    values = input_values(specs, factors)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "lora_a_full_attention_q": (2, 5, 24),
        "lora_b_full_attention_q": (2, 5, 24),
        "lora_a_full_mlp_down": (2, 5, 40),
        "lora_b_full_mlp_down": (2, 5, 24),
    }
    a, b = factors["layers.1.mlp.down"]
    assert torch.equal(values["lora_a_full_mlp_down"][1, :3], a)
    assert torch.equal(values["lora_b_full_mlp_down"][1, :3], b.t())
    for value in values.values():
        assert not value[0].any()
        assert not value[:, 3:].any()


def test_what_can_only_be_merged_is_named(tmp_path: Path) -> None:
    """An expert's matrix is a part of a stack of ours."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 40}
    config = MixtralConfig(vocab_size=50, num_key_value_heads=2, num_local_experts=2, **sizes)
    model = small_model(MixtralForCausalLM, config)
    model.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", target_modules=["q_proj"])
    base = open_checkpoint(tmp_path / "base")
    recipe = recipe_from_config(base.config, "small").recipe
    adapter = Unmerged(base, Adapter(tmp_path / "adapter"), 1.0)
    bindings = bind_weights(build_decoder(recipe), base)
    assert bind_low_rank(bindings, adapter.alone, matrices_of_layers(recipe)).keys() == {"layers.0.attention.q"}
    with pytest.raises(CheckpointError) as refused:
        bind_low_rank(bindings, adapter.alone, [])
    said = "layers.0.attention.q is no plain matrix of a layer: an adapter of it is merged, not handed in"
    assert refused.value.problems == (f"adapter {tmp_path / 'adapter'}: {said}",)
