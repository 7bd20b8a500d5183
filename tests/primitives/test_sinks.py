"""A sink in each head against transformers' gpt-oss attention."""

from typing import Any

import pytest
import torch
from figures import psnr
from torch import Tensor

from coreai_recipes.primitives.attention import Attention, build_attention
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.recipe import schema

HIDDEN, HEADS, KV_HEADS, D, S, WINDOW = 48, 6, 2, 20, 17, 5
NORM = schema.RMSNorm(kind="rms", eps=1e-5)


def pair(window: int | None) -> tuple[Any, Attention]:
    """transformers' attention with random weights and ours with the same."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

    layer_type = "full_attention" if window is None else "sliding_attention"
    config = GptOssConfig(
        hidden_size=HIDDEN, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=D,
        num_hidden_layers=1, layer_types=[layer_type], sliding_window=window, attn_implementation="eager",
    )  # fmt: skip
    block = GptOssAttention(config, 0).eval()
    for tensor in block.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * (1.5 * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 1.0))
    attention = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": D, "bias": "qkvo", "sinks": True}
    kind = schema.LayerKind.model_validate(
        {
            "attention": {"kind": "full", **attention},
            "rotary": {"kind": "none"},
            "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 8},
        }
    )
    module = build_attention(kind, HIDDEN, NORM)
    names = {name: name.replace(".", "_proj.") for name, _ in module.named_parameters()} | {"sinks": "sinks"}
    for name, parameter in module.named_parameters():
        parameter.copy_(block.state_dict()[names[name]].view(parameter.shape))
    assert isinstance(module, Attention)
    return block, module


def compared(block: Any, module: Attention, window: int | None) -> tuple[Tensor, Tensor]:
    x, positions = torch.randn(1, S, HIDDEN), torch.arange(S)
    seen = mask(positions, positions, window)  # (1, K, 1, S)
    still = torch.ones(1, S, D // 2), torch.zeros(1, S, D // 2)
    theirs, _ = block(x, still, seen.permute(0, 2, 3, 1))
    ours = module(x.transpose(1, 2).unsqueeze(2), LayerInputs(seen), NoCache())
    return theirs, ours.squeeze(2).transpose(1, 2)


@pytest.mark.parametrize("window", [None, WINDOW])
def test_attention_with_sinks_equals_gpt_oss(window: int | None) -> None:
    assert psnr(*compared(*pair(window), window)) >= 120


def test_sinks_left_out_or_of_other_heads_are_seen() -> None:
    block, module = pair(None)
    module.sinks.copy_(module.sinks.roll(1))
    assert psnr(*compared(block, module, None)) < 60
    module.sinks = None
    assert psnr(*compared(block, module, None)) < 60


def test_a_sink_far_above_all_scores_leaves_the_bias_of_o_alone() -> None:
    _, module = pair(None)
    module.sinks.fill_(1e3)
    positions = torch.arange(S)
    y = module(torch.randn(1, HIDDEN, 1, S), LayerInputs(mask(positions, positions, None)), NoCache())
    assert torch.allclose(y, module.o.bias.view(1, -1, 1, 1).expand(y.shape), atol=1e-6)
