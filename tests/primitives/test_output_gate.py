"""Gates of what the heads give, against transformers' AFMoE attention, and against each other."""

from typing import Any

import torch
from figures import psnr
from torch import Tensor

from coreai_recipes.primitives.attention import Attention, build_attention
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.recipe import schema

HIDDEN, HEADS, KV_HEADS, D, S = 48, 6, 2, 20, 17
NORM = schema.RMSNorm(kind="rms", eps=1e-5)


def ours(of: str) -> Attention:
    kind = schema.LayerKind.model_validate(
        {
            "attention": {
                "kind": "full",
                "num_heads": HEADS,
                "num_kv_heads": KV_HEADS,
                "head_dim": D,
                "qk_norm": {"over": "head"},
                "output_gate": {"of": of},
            },
            "rotary": {"kind": "none"},
            "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 8},
        }
    )
    module = build_attention(kind, HIDDEN, NORM)
    assert isinstance(module, Attention)
    return module


def fill(module: Attention, theirs: Any) -> None:
    """Ours with the weights of transformers' module."""
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", "output_gate": "gate_proj"}
    for name, parameter in module.named_parameters():
        owner, leaf = name.split(".")
        parameter.copy_(theirs.state_dict()[f"{names.get(owner, owner)}.{leaf}"].view(parameter.shape))


def run(module: Attention, x: Tensor) -> Tensor:
    positions = torch.arange(S, dtype=torch.int32)
    out: Tensor = module(x, LayerInputs(mask(positions, positions, None)), NoCache())
    return out


def test_a_gate_of_each_dimension_is_afmoe_s() -> None:
    from transformers import AfmoeConfig
    from transformers.models.afmoe.modeling_afmoe import AfmoeAttention

    config = AfmoeConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=D, num_hidden_layers=1,
        layer_types=["full_attention"], attn_implementation="eager",
    )  # fmt: skip
    theirs = AfmoeAttention(config, 0).eval()
    torch.manual_seed(0)
    module = ours("width")
    x = torch.randn(1, S, HIDDEN)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            tensor.copy_(torch.randn_like(tensor) * (1.5 * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 1.0))
        fill(module, theirs)
        hidden = torch.full((S, S), -1e9).triu(1)[None, None]
        none = torch.ones(1, S, D), torch.zeros(1, S, D)
        expected = theirs(x, none, hidden)[0].transpose(1, 2).unsqueeze(2)
        assert psnr(run(module, x.transpose(1, 2).unsqueeze(2)), expected) > 120


def test_a_gate_of_each_head_is_that_of_its_dimensions_where_they_are_alike() -> None:
    torch.manual_seed(1)
    by_head, by_dimension = ours("head"), ours("width")
    with torch.no_grad():
        for name, parameter in by_dimension.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 1.0))
            if name.startswith("output_gate"):
                rows = by_head.get_parameter(name).copy_(torch.randn_like(by_head.get_parameter(name)))
                parameter.copy_(rows.repeat_interleave(D, 0))
            else:
                by_head.get_parameter(name).copy_(parameter)
        x = torch.randn(1, HIDDEN, 1, S)
        assert psnr(run(by_head, x), run(by_dimension, x)) > 120
