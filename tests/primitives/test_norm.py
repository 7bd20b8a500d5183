"""Norms against transformers' and torch's, and where the plain form of them overflows."""

from collections.abc import Callable

import pytest
import torch
from figures import psnr
from torch import Tensor, nn

from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.recipe import schema

C, EPS = 72, 1e-5
Case = Callable[[Tensor], tuple[Tensor, Tensor]]


def channels_first(x: Tensor) -> Tensor:
    """(N, S, C) -> (N, C, 1, S), as a norm of ours wants it."""
    return x.transpose(1, 2).unsqueeze(2)


def channels_last(x: Tensor) -> Tensor:
    return x.squeeze(2).transpose(1, 2)


def ours(x: Tensor, spec: schema.RMSNorm | schema.LayerNorm, **parameters: Tensor) -> Tensor:
    """Our norm of x (N, S, C) with `parameters` (C,), in x's dtype."""
    norm = build_norm(spec, x.shape[2])
    assert {name for name, _ in norm.named_parameters()} == set(parameters)
    for name, value in parameters.items():
        getattr(norm, name).copy_(value.view(1, -1, 1, 1))
    y = norm.to(x.dtype)(channels_first(x))
    assert y.dtype == x.dtype
    return channels_last(y)


def rms(x: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    theirs = LlamaRMSNorm(x.shape[2], eps)
    theirs.weight.copy_(1 + 0.3 * torch.randn(x.shape[2]))
    return theirs(x), ours(x, schema.RMSNorm(kind="rms", eps=eps), weight=theirs.weight)


def rms_plus_one(x: Tensor) -> tuple[Tensor, Tensor]:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    theirs = GemmaRMSNorm(x.shape[2], EPS)
    theirs.weight.copy_(0.3 * torch.randn(x.shape[2]))
    return theirs(x), ours(x, schema.RMSNorm(kind="rms", eps=EPS, weight="1+w"), weight=1 + theirs.weight)


def rms_without_weight(x: Tensor) -> tuple[Tensor, Tensor]:
    from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

    theirs = Gemma4RMSNorm(x.shape[2], EPS, with_scale=False)
    return theirs(x), ours(x, schema.RMSNorm(kind="rms", eps=EPS, weight="none"))


def layer(x: Tensor, weight: str = "w", bias: bool = True, eps: float = EPS) -> tuple[Tensor, Tensor]:
    theirs = nn.LayerNorm(x.shape[2], eps, elementwise_affine=weight != "none", bias=bias)
    for parameter in theirs.parameters():
        parameter.add_(0.3 * torch.randn(x.shape[2]))
    spec = schema.LayerNorm(kind="layer", eps=eps, weight=weight, bias=bias)
    return theirs(x), ours(x, spec, **{name: p.detach() for name, p in theirs.named_parameters()})


def layer_plus_one(x: Tensor) -> tuple[Tensor, Tensor]:
    from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

    theirs = NemotronLayerNorm1P(x.shape[2], eps=EPS)
    for parameter in theirs.parameters():
        parameter.copy_(0.3 * torch.randn(x.shape[2]))
    spec = schema.LayerNorm(kind="layer", eps=EPS, weight="1+w")
    return theirs(x), ours(x, spec, weight=1 + theirs.weight, bias=theirs.bias)


def each_head(x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of each row's own, over the last axis (Cohere's q_norm)."""
    from transformers.models.cohere.modeling_cohere import CohereLayerNorm

    theirs = CohereLayerNorm((x.shape[0], x.shape[2]), eps=EPS)
    theirs.weight.copy_(1 + 0.3 * torch.randn(theirs.weight.shape))
    norm = build_norm(schema.LayerNorm(kind="layer", eps=EPS, bias=False), x.shape[2], rows=x.shape[0])
    norm.weight.copy_(theirs.weight[..., None, None])
    return theirs(x.transpose(0, 1)).transpose(0, 1), channels_last(norm(channels_first(x)))


PARITY: dict[str, dict[str, Case]] = {
    "rms": {"llama": rms, "gemma": rms_plus_one, "gemma4_v_norm": rms_without_weight},
    "layer": {
        "torch": layer,
        "cohere_without_bias": lambda x: layer(x, bias=False),
        "cohere_each_head": each_head,
        "nemotron_1_plus_w": layer_plus_one,
        "olmo_without_anything": lambda x: layer(x, weight="none", bias=False),
    },
}


@pytest.mark.parametrize("shape", [(1, 9, C), (6, 5, 20)], ids=["hidden", "per_head"])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_a_norm_equals_its_reference(kind: str, name: str, shape: tuple[int, int, int]) -> None:
    reference, x = PARITY[kind][name](2 * torch.randn(shape) + 0.5)
    assert psnr(reference, x) >= 120


@pytest.mark.parametrize("magnitude", [1e-6, 1e-4, 1e-2, 1.0, 255.0, 1e3, 6e4])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_a_norm_in_float32_is_exact_at_every_magnitude(kind: str, name: str, magnitude: float) -> None:
    reference, x = PARITY[kind][name](magnitude * torch.randn(1, 9, C))
    assert psnr(reference, x) >= 120


def spread(magnitude: float, dtype: torch.dtype) -> Tensor:
    """Rows whose largest value is `magnitude`, also when the rest is far below it."""
    x = torch.randn(1, 8, C).clamp(-3, 3)
    x[:, 4:] *= 0.01
    x[:, 4:, 5] = 3.0
    return (x * magnitude / x.abs().amax(-1, keepdim=True)).to(dtype)


@pytest.mark.parametrize("magnitude", [1e-6, 1e-5, 1e-4, 1e-3, 1.0, 255.0, 256.0, 1e4, 2.2474e4, 6e4])
@pytest.mark.parametrize("eps", [1e-4, 1e-5, 1e-6, 1.5625e-7])
@pytest.mark.parametrize("form", [rms, layer])
def test_no_magnitude_overflows_or_vanishes_in_float16(form: Case, eps: float, magnitude: float) -> None:
    """SmolLM2's residual stream reaches 22,474. The same rows and weights, in float32, are what float16 must give."""
    x = spread(magnitude, torch.float16)
    torch.manual_seed(1)
    reference, _ = form(x.float(), eps=eps)
    torch.manual_seed(1)
    found = _float16(form, x, eps)
    assert torch.isfinite(found).all()
    # two rounded factors and the weight: 11 bits each
    assert psnr(reference, found.float()) >= 55


def _float16(form: Case, x: Tensor, eps: float) -> Tensor:
    spec = schema.RMSNorm(kind="rms", eps=eps) if form is rms else schema.LayerNorm(kind="layer", eps=eps)
    weight = 1 + 0.3 * torch.randn(C)
    return ours(x, spec, weight=weight) if form is rms else ours(x, spec, weight=weight, bias=0.3 * torch.randn(C))


def test_the_plain_form_does_overflow_float16() -> None:
    """Why ours divides by the largest magnitude first."""
    x = spread(6e4, torch.float16)
    plain = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)
    assert not plain.any()  # x / inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_an_all_zero_row_gives_zeros_and_leaves_its_neighbours_alone(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(1, 3, C, dtype=torch.float32).to(dtype)
    x[0, 1] = 0
    spec = {
        "rms": schema.RMSNorm(kind="rms", eps=EPS),
        "layer": schema.LayerNorm(kind="layer", eps=EPS, bias=False),
    }[kind]
    y = ours(x, spec, weight=torch.full((C,), 1.7))
    assert not y[0, 1].any()
    assert torch.isfinite(y).all()
    assert torch.equal(y[:, [0, 2]], ours(x[:, [0, 2]], spec, weight=torch.full((C,), 1.7)))


def test_a_row_below_the_smallest_divisor_is_still_normed() -> None:
    """Rows under 2^-14 are divided by 2^-14 rather than by their own magnitude: no jump where the two meet."""
    x = torch.randn(1, 1, C)
    x = x / x.abs().max()
    spec = schema.RMSNorm(kind="rms", eps=1e-12)
    for power in (-13, -14, -15, -20):
        y = ours(x * 2.0**power, spec, weight=torch.ones(C))
        plain = x * 2.0**power * torch.rsqrt((x * x * 4.0**power).mean(-1, keepdim=True) + 1e-12)
        assert psnr(plain, y) >= 120
