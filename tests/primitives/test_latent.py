"""Latent attention against transformers' DeepSeek V3, plain, folded and with mistakes."""

from typing import Any

import pytest
import torch
from figures import psnr
from torch import Tensor

from coreai_recipes.primitives.attention import build_attention
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.primitives.latent import LatentAttention
from coreai_recipes.primitives.layer import Form
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.recipe import schema
from coreai_recipes.weights.folding import stored_as

HIDDEN, HEADS, NOPE, ROPE, VALUE, Q_RANK, KV_RANK, S = 52, 3, 12, 8, 14, 36, 28, 17
NORM = schema.RMSNorm(kind="rms", eps=1e-5)
YARN = {"factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.7}
NAMES = {
    "q": "q_proj", "q_a": "q_a_proj", "q_a_norm": "q_a_layernorm", "q_b": "q_b_proj", "kv_a_norm": "kv_a_layernorm",
    "kv_b": "kv_b_proj", "o": "o_proj", "kv_a": "kv_a_proj_with_mqa", "k_rope": "kv_a_proj_with_mqa",
}  # fmt: skip


def their_attention(**changes: Any) -> Any:
    """transformers' attention, every parameter off its default."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    sizes = {
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "q_lora_rank": Q_RANK, "kv_lora_rank": KV_RANK,
        "num_hidden_layers": 1, "max_position_embeddings": 512, "attn_implementation": "eager",
    }  # fmt: skip
    block = DeepseekV3Attention(DeepseekV3Config(**{**sizes, **changes}), 0).eval()
    for name, tensor in block.state_dict().items():
        random = torch.randn_like(tensor)
        is_norm = "norm" in name
        tensor.copy_(
            1 + 0.3 * random if is_norm else random * (1.5 * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.4)
        )
    return block


def recipe_for(block: Any, context: int = 64) -> schema.Recipe:
    config = block.config
    yarn = config.rope_parameters["rope_type"] == "yarn"
    kind = {
        "attention": {
            "kind": "latent", "num_heads": HEADS, "num_kv_heads": HEADS, "nope_dim": NOPE, "rope_dim": ROPE,
            "value_dim": VALUE, "q_rank": config.q_lora_rank, "kv_rank": KV_RANK,
            "bias": "qkvo" if config.attention_bias else "none",
        },
        "rotary": {
            "kind": "full", "theta": 1e4, "pairing": "interleaved" if config.rope_interleave else "half",
            "scaling": {"kind": "yarn", "original_context": 64, **YARN} if yarn else None,
        },
        "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 8},
    }  # fmt: skip
    model = {
        "vocab_size": 9, "hidden_size": HIDDEN, "norm": NORM.model_dump(), "head": {"tied": True},
        "kinds": {"latent": kind}, "layers": ["latent"],
    }  # fmt: skip
    export = {"context": context, "functions": {"prefill": 16}}
    return schema.Recipe.model_validate(
        {"recipe": 1, "name": "r", "reference": None, "model": model, "weights": {"names": "llama"}, "export": export}
    )


def ours(block: Any, folded: schema.RotaryFold | None = None) -> LatentAttention:
    """Our module with the weights of transformers', rewritten as a fold wants them."""
    recipe = recipe_for(block)
    module = build_attention(recipe.model.kinds["latent"], HIDDEN, NORM, folded)
    stored = block.state_dict()
    for name, parameter in module.named_parameters():
        part, _, leaf = name.rpartition(".")
        tensor = stored[f"{NAMES[part]}.{leaf}"]
        tensor = tensor[:KV_RANK] if part == "kv_a" else tensor[KV_RANK:] if part == "k_rope" else tensor
        rewrite = stored_as(recipe, f"layers.0.attention.{name}", Form(folded=folded))
        parameter.copy_(rewrite.apply(tensor).view(parameter.shape))
    assert isinstance(module, LatentAttention)
    return module


def compared(block: Any, module: LatentAttention) -> tuple[Tensor, Tensor]:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

    x, positions = torch.randn(1, S, HIDDEN), torch.arange(100, 100 + S)
    seen = mask(positions, positions, None)
    angles = DeepseekV3RotaryEmbedding(block.config)(x, positions[None])
    theirs, _ = block(x, angles, seen.permute(0, 2, 3, 1))
    y = module(x.transpose(1, 2).unsqueeze(2), LayerInputs(seen, **module.rotary.given(positions)), NoCache())
    return theirs, y.squeeze(2).transpose(1, 2)


YARN_PARAMETERS = {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 64, **YARN}
CASES: dict[str, dict[str, Any]] = {
    "interleaved": {},
    "half": {"rope_interleave": False},
    "yarn": {"rope_parameters": YARN_PARAMETERS},
    "queries of the hidden state": {"q_lora_rank": None},
    "biased": {"attention_bias": True},
    "all at once": {"q_lora_rank": None, "attention_bias": True, "rope_parameters": YARN_PARAMETERS},
}


def case(name: str) -> Any:
    block = their_attention(**CASES[name])
    return lambda: [compared(block, ours(block))]


@pytest.mark.parametrize("folded", [None, "contiguous", "whole_head"])
@pytest.mark.parametrize("name", CASES)
def test_latent_attention_equals_deepseeks(name: str, folded: schema.RotaryFold | None) -> None:
    block = their_attention(**CASES[name])
    assert psnr(*compared(block, ours(block, folded))) >= 120


def test_a_folded_rotary_takes_no_strided_slices() -> None:
    block = their_attention()
    assert ours(block).rotary.pairing == "interleaved"
    assert ours(block, folded="contiguous").rotary.pairing == "half"


def pair_halves(module: LatentAttention) -> None:
    module.rotary.pairing = "half"


def leave_out_the_magnitude(module: LatentAttention) -> None:
    module.scale = (NOPE + ROPE) ** -0.5


def leave_out_the_attention_factor(module: LatentAttention) -> None:
    module.rotary.attention_factor = 1.0


def turn_the_first_dimensions(module: LatentAttention) -> None:
    """The part that passes and the part that turns exchanged."""
    for part in (module.q_b, module.q):
        if part is not None:
            rows = part.weight.view(HEADS, NOPE + ROPE, -1)
            rows.copy_(rows.roll(ROPE, 1))


def drop_the_weight_of_the_short_rows_norm(module: LatentAttention) -> None:
    module.kv_a_norm.weight.fill_(1)


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("interleaved", pair_halves),
        ("yarn", leave_out_the_magnitude),
        ("yarn", leave_out_the_attention_factor),
        ("interleaved", turn_the_first_dimensions),
        ("interleaved", drop_the_weight_of_the_short_rows_norm),
    ],
)
def test_a_mistake_in_one_part_is_far_below_the_floor(name: str, mutate: Any) -> None:
    block = their_attention(**CASES[name])
    module = ours(block)
    mutate(module)
    assert psnr(*compared(block, module)) < 60


def test_a_sum_of_both_parts_is_the_width_of_states() -> None:
    from coreai_recipes.decoder.states import state_specs

    spec = state_specs(recipe_for(their_attention()))["latent"]
    assert (spec.num_kv_heads, spec.head_dim) == (HEADS, NOPE + ROPE)
