"""Per-layer embeddings against the parts of transformers' Gemma 4 that they stand for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from figures import psnr
from torch import Tensor, nn

from coreai_recipes.primitives.per_layer import PerLayerGate, PerLayerInput, slice_of
from coreai_recipes.recipe import schema

HIDDEN, LAYERS, SIZE, VOCAB, TOKENS, EPS = 52, 3, 12, 131, 9, 1e-6
SPEC = schema.PerLayerEmbedding(size=SIZE, vocab_size=VOCAB)
NORM = schema.RMSNorm(kind="rms", eps=EPS)
Case = Callable[[], tuple[Tensor, Tensor]]


class Nothing(nn.Module):
    """In place of a layer's attention or MLP: what then reaches the gate is the layer's input."""

    def __init__(self, gives: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.gives = gives

    def forward(self, hidden_states: Tensor, **_: Any) -> Any:
        return self.gives(torch.zeros_like(hidden_states))


def their_model() -> Any:
    """transformers' own, every parameter off its default."""
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextModel

    config = Gemma4TextConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=60, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, global_head_dim=32, hidden_size_per_layer_input=SIZE, rms_norm_eps=EPS,
        vocab_size_per_layer_input=VOCAB, num_kv_shared_layers=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    model = Gemma4TextModel(config).eval()
    for name, parameter in model.named_parameters():
        random = torch.randn_like(parameter)
        parameter.copy_(1 + 0.3 * random if "norm" in name else random * parameter.shape[-1] ** -0.5)
    return model


def fill(module: nn.Module, weights: dict[str, Tensor]) -> None:
    assert {name for name, _ in module.named_parameters()} == set(weights)
    for name, weight in weights.items():
        parameter = module.get_parameter(name)
        parameter.copy_(weight.view(parameter.shape))


def input_compared(stream_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    model, ids = their_model(), torch.randint(0, VOCAB, (1, TOKENS))
    embedded = 5 * torch.randn(1, TOKENS, HIDDEN)
    theirs = model.project_per_layer_inputs(embedded, model.get_per_layer_inputs(ids, embedded))  # (1, S, L, P)
    module = PerLayerInput(SPEC, LAYERS, HIDDEN, NORM, stream_scale)
    projection, norm = model.per_layer_model_projection.weight, model.per_layer_projection_norm.weight
    fill(module, {"projection.weight": projection, "norm.weight": norm})
    rows = model.embed_tokens_per_layer.weight[ids[0]].unsqueeze(0)  # as the table has them, without their scale
    x = stream_scale * embedded.transpose(1, 2).unsqueeze(2)
    return theirs, module(x, rows).squeeze(2).permute(2, 0, 1).unsqueeze(0)


def gate_compared() -> tuple[Tensor, Tensor]:
    model = their_model()
    layer, x, of_layer = model.layers[1], 5 * torch.randn(1, TOKENS, HIDDEN), torch.randn(1, TOKENS, SIZE)
    layer.self_attn, layer.mlp = Nothing(lambda zeros: (zeros, None)), Nothing(lambda zeros: zeros)
    module = PerLayerGate(SPEC, HIDDEN, NORM)
    fill(
        module,
        {
            "gate.weight": layer.per_layer_input_gate.weight,
            "projection.weight": layer.per_layer_projection.weight,
            "norm.weight": layer.post_per_layer_input_norm.weight,
        },
    )
    ours = module(x.transpose(1, 2).unsqueeze(2), of_layer.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
    return layer(x, per_layer_input=of_layer) - x, ours


PARITY: dict[str, dict[str, Case]] = {
    "input": {f"stream x {scale:g}": partial(input_compared, scale) for scale in (1.0, 2.0**-5)},
    "gate": {"gelu_tanh": gate_compared},
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_per_layer_embeddings_equal_their_reference(kind: str, name: str) -> None:
    reference, x = PARITY[kind][name]()
    assert psnr(reference, x) >= 110


@pytest.mark.parametrize("factor", [SIZE**0.5, 2**-0.5])
def test_a_scale_that_is_dropped_is_seen(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    from coreai_recipes.primitives import per_layer

    scaled = per_layer.scaled
    monkeypatch.setattr(per_layer, "scaled", lambda x, by: x if by == factor else scaled(x, by))
    reference, x = input_compared()
    assert psnr(reference, x) < 30


def test_each_layer_is_given_its_own_slice() -> None:
    of_all = torch.randn(LAYERS, SIZE, 1, TOKENS)
    for index in range(LAYERS):
        assert torch.equal(slice_of(of_all, torch.tensor([index])), of_all[index : index + 1])
