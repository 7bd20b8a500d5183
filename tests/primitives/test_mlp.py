"""MLPs against transformers', each activation and bias."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES
from figures import psnr
from mixture_families import MIXTURES, compared
from torch import Tensor

from coreai_recipes.primitives.mlp import ACTIVATIONS, XIELU, build_mlp
from coreai_recipes.recipe import schema

Case = Callable[[], tuple[Tensor, Tensor]]


def of_family(name: str) -> Case:
    """Every layer's MLP of a family, on hidden states large enough to bend the activation."""

    def compare() -> tuple[Tensor, Tensor]:
        pair = FAMILIES[name]()
        x = 3 * torch.randn(1, 9, pair.recipe.model.hidden_size)
        decoder = pair.decoder()
        theirs = [layer.mlp(x) for layer in pair.model.model.layers]
        ours = [layer.mlp(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2) for layer in decoder.layers]
        return torch.stack(theirs), torch.stack(ours)

    return compare


THEIR_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "relu2": "relu2",
    "xielu": "xielu",
}
X = 3 * torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(5))


def sizes(activation: str) -> dict[str, Any]:
    own = {"hidden_size": 48, "intermediate_size": 88, "num_attention_heads": 6}
    return {**own, "hidden_act": THEIR_ACTIVATIONS[activation]}


def compared_mlps(spec: schema.GatedMLP | schema.PlainMLP, theirs: Any) -> tuple[Tensor, Tensor]:
    """Theirs and ours with its weights, which are set at random."""
    generator = torch.Generator().manual_seed(6)
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * max(parameter.shape[-1], 4) ** -0.5)
    ours = build_mlp(spec, 48)
    for name, parameter in ours.named_parameters():
        part, _, leaf = name.rpartition(".")
        owner = theirs.act_fn if part == "activation" else getattr(theirs, f"{part}_proj")
        given = getattr(owner, leaf)
        if part == "activation":  # as `folding` reads them
            given = F.softplus(given) + (0.5 if leaf == "alpha_n" else 0.0)
        parameter.copy_(given.view(parameter.shape))
    return theirs(X), ours(X.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


def gated(activation: str) -> Case:
    def compare() -> tuple[Tensor, Tensor]:
        from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

        spec = schema.GatedMLP(kind="gated", activation=activation, intermediate_size=88)
        return compared_mlps(spec, LlamaMLP(LlamaConfig(**sizes(activation))))

    return compare


def plain(activation: str, bias: bool = False) -> Case:
    def compare() -> tuple[Tensor, Tensor]:
        from transformers.models.apertus.modeling_apertus import ApertusConfig, ApertusMLP
        from transformers.models.arcee.modeling_arcee import ArceeConfig, ArceeMLP

        spec = schema.PlainMLP(kind="plain", activation=activation, intermediate_size=88, bias=bias)
        if activation == "xielu":
            return compared_mlps(spec, ApertusMLP(ApertusConfig(**sizes(activation))).float())
        return compared_mlps(spec, ArceeMLP(ArceeConfig(**sizes(activation), mlp_bias=bias)))

    return compare


def behind_a_mixer() -> tuple[Tensor, Tensor]:
    """The stream behind transformers' layer of Mamba-2, and behind its mixer with what we add."""
    from transformers import Mamba2Config, Mamba2Model

    config = Mamba2Config(hidden_size=32, num_heads=4, head_dim=16, n_groups=2, state_size=12, num_hidden_layers=1)
    torch.manual_seed(0)
    (block,) = Mamba2Model(config).eval().layers  # a block made alone has steps and decays of uninitialised memory
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mixed = x + block.mixer(block.norm(x))
        return block(x), mixed + build_mlp(schema.NoMLP(kind="none"), 32)(mixed)


WORDS: tuple[str, ...] = get_args(schema.Activation.__origin__)
PLAIN = (*WORDS, "xielu")
PARITY: dict[str, dict[str, Case]] = {
    "gated": {
        **{name: of_family(name) for name in ("llama", "llama_biased", "gemma2")},
        **{activation: gated(activation) for activation in WORDS},
    },
    "plain": {**{activation: plain(activation) for activation in PLAIN}, "relu2_biased": plain("relu2", bias=True)},
    "none": {"mamba2": behind_a_mixer},
    "moe": {name: partial(compared, name, "gathered", 9) for name in MIXTURES},  # test_mixture.py has more
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_an_mlp_equals_its_reference(kind: str, name: str) -> None:
    reference, x = PARITY[kind][name]()
    assert psnr(reference, x) >= 120


def test_every_activation_that_a_recipe_can_say_is_compared() -> None:
    said = set(WORDS)
    assert said == set(ACTIVATIONS)
    assert said <= set(PARITY["gated"])
    assert said | {"xielu"} <= set(PARITY["plain"])


def test_xielus_scalars_are_told_apart() -> None:
    """Above zero and below: exchanged, they give another function."""
    mlp = XIELU()
    mlp.alpha_p.fill_(0.9)
    mlp.alpha_n.fill_(1.4)
    x = torch.tensor([2.0, -2.0, 0.0]).view(1, 3, 1, 1)
    expected = torch.tensor([0.9 * 4 + 1, 1.4 * (math.exp(-2) - 1 + 2) - 1, 0.0]).view(1, 3, 1, 1)
    assert torch.allclose(mlp(x), expected, atol=1e-6)


@pytest.mark.parametrize("activation", PLAIN)
def test_activations_are_safe_in_float16(activation: str) -> None:
    """Where float32's result fits, float16's is near it, down to the smallest and up to the largest inputs."""
    mlp = build_mlp(schema.PlainMLP(kind="plain", activation=activation, intermediate_size=4), 4).activation
    if isinstance(mlp, XIELU):
        mlp.alpha_p.fill_(0.9)
        mlp.alpha_n.fill_(1.4)
    x = torch.tensor([-6e4, -200.0, -1.0, -1e-3, -1e-7, 0.0, 1e-7, 1e-3, 1.0, 200.0]).half().view(1, -1, 1, 1)
    expected, found = mlp(x.float()), (mlp.half() if isinstance(mlp, XIELU) else mlp)(x).float()
    fits = expected.abs() < 65504
    assert torch.allclose(found[fits], expected[fits], rtol=4e-3, atol=1e-3)


def test_the_other_activation_is_another_function() -> None:
    """What an activation mixed up looks like: silu and tanh-gelu differ by far more than the floor."""
    pair = FAMILIES["llama"]()
    decoder = pair.decoder()
    x = 3 * torch.randn(1, pair.recipe.model.hidden_size, 1, 9)
    spec = pair.recipe.model.kinds["full"].mlp.model_copy(update={"activation": "gelu_tanh"})
    wrong = build_mlp(spec, pair.recipe.model.hidden_size)
    wrong.load_state_dict(decoder.layers[0].mlp.state_dict())
    assert psnr(decoder.layers[0].mlp(x), wrong(x)) < 60


@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_is_there_when_the_recipe_says_so(bias: bool) -> None:
    spec = schema.GatedMLP(kind="gated", activation="silu", intermediate_size=88, bias=bias)
    names = {name for name, _ in build_mlp(spec, 48).named_parameters()}
    weights = {f"{part}.weight" for part in ("gate", "up", "down")}
    assert names == (weights | {f"{part}.bias" for part in ("gate", "up", "down")} if bias else weights)
