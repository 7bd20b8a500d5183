"""The mixture of experts against the part of transformers' Gemma 4 layer that it stands for."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from figures import psnr
from torch import Tensor, nn

from coreai_recipes.primitives.experts import Experts, build_experts
from coreai_recipes.primitives.mlp import ACTIVATIONS
from coreai_recipes.recipe import schema

HIDDEN, WIDTH, EXPERTS, TOP, EPS = 52, 36, 11, 3, 1e-6
THEIR_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
NORM = schema.RMSNorm(kind="rms", eps=EPS)
Case = Callable[[], tuple[Tensor, Tensor]]


class NoAttention(nn.Module):
    """In place of a layer's attention: the residual before the MLP is then the layer's input."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


def their_layer(activation: str = "gelu_tanh") -> Any:
    """transformers' own layer without attention, every parameter off its default, logits of the router far apart."""
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextDecoderLayer

    config = Gemma4TextConfig(
        vocab_size=131, hidden_size=HIDDEN, intermediate_size=60, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, global_head_dim=32, hidden_size_per_layer_input=0, enable_moe_block=True,
        num_experts=EXPERTS, top_k_experts=TOP, moe_intermediate_size=WIDTH, rms_norm_eps=EPS,
        hidden_activation=THEIR_ACTIVATIONS[activation], layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
    )  # fmt: skip
    config._experts_implementation = "eager"
    layer = Gemma4TextDecoderLayer(config, 0).eval()
    layer.self_attn = NoAttention()
    for name, parameter in layer.named_parameters():
        random = torch.randn_like(parameter)
        is_scale = "norm" in name or name.endswith("scale")
        parameter.copy_(1 + 0.3 * random if is_scale else random * parameter.shape[-1] ** -0.5)
    layer.router.proj.weight.mul_(2)
    return layer


def of_layer(layer: Any, activation: str = "gelu_tanh", decode: str = "gathered") -> Experts:
    """Our module with the weights of transformers' layer."""
    spec = schema.Experts.model_validate(
        {
            "num_experts": EXPERTS,
            "intermediate_size": WIDTH,
            "activation": activation,
            "router": {"kind": "softmax", "top": TOP},
            "decode": decode,
        }
    )
    module = build_experts(spec, HIDDEN, NORM, NORM)
    theirs = {
        "pre_norm.weight": layer.pre_feedforward_layernorm_2.weight,
        "post_norm.weight": layer.post_feedforward_layernorm_2.weight,
        "router.scale": layer.router.scale,
        "router.proj.weight": layer.router.proj.weight,
        "router.expert_scale": layer.router.per_expert_scale,
        "gate_up": layer.experts.gate_up_proj,
        "down": layer.experts.down_proj,
    }
    assert {name for name, _ in module.named_parameters()} == set(theirs)
    for name, value in theirs.items():
        parameter = module.get_parameter(name)
        parameter.copy_(value.view(parameter.shape))
    assert isinstance(module, Experts)
    return module


def hidden_state(tokens: int) -> Tensor:
    return 5 * torch.randn(1, tokens, HIDDEN)


def theirs(layer: Any, x: Tensor) -> Tensor:
    """What the layer's mixture gives before and after its post norm, one below the other: (2, S, C)."""
    seen: list[Tensor] = []
    hook = layer.post_feedforward_layernorm_2.register_forward_hook(lambda _, given, y: seen.extend((*given, y)))
    layer(x)
    hook.remove()
    return torch.cat(seen)


def ours(module: Experts, x: Tensor) -> Tensor:
    """The same of our module, (2, S, C)."""
    seen: list[Tensor] = []
    hook = module.post_norm.register_forward_hook(lambda _, given, y: seen.extend((*given, y)))
    module(x.transpose(1, 2).unsqueeze(2))
    hook.remove()
    return torch.cat(seen).squeeze(2).transpose(1, 2)


def compared(activation: str = "gelu_tanh", decode: str = "gathered", tokens: int = 9) -> tuple[Tensor, Tensor]:
    layer, x = their_layer(activation), hidden_state(tokens)
    return theirs(layer, x), ours(of_layer(layer, activation, decode), x)


PARITY: dict[str, dict[str, Case]] = {
    "softmax": {
        f"{activation}, {decode}, {tokens} tokens": partial(compared, activation, decode, tokens)
        for activation in THEIR_ACTIVATIONS
        for decode in ("gathered", "all")
        for tokens in (1, 2, 9)
    }
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_experts_equal_their_reference(kind: str, name: str) -> None:
    reference, x = PARITY[kind][name]()
    assert psnr(reference[0], x[0]) >= 120
    assert psnr(reference[1], x[1]) >= 120


def test_every_activation_that_a_recipe_can_say_is_compared() -> None:
    said = set(get_args(schema.Experts.model_fields["activation"].annotation))
    assert set(THEIR_ACTIVATIONS) == said <= set(ACTIVATIONS)


def test_one_token_gives_the_same_gathered_and_computed_by_all_experts() -> None:
    layer = their_layer()
    gathered, everything = (of_layer(layer, decode=decode) for decode in ("gathered", "all"))
    for _ in range(20):
        x = hidden_state(1)
        assert psnr(ours(everything, x), ours(gathered, x)) >= 120


def test_only_one_token_with_gathered_reads_some_experts_alone() -> None:
    """NaN in an expert that no token has chosen reaches the others' sum, unless its weights were never read."""
    layer, x = their_layer(), hidden_state(1)
    _, _, chosen = layer.router(x[0])
    others = [expert for expert in range(EXPERTS) if expert not in chosen]
    layer.experts.gate_up_proj[others] = torch.nan
    assert of_layer(layer, decode="gathered")(x.view(1, HIDDEN, 1, 1)).isfinite().all()
    assert not of_layer(layer, decode="all")(x.view(1, HIDDEN, 1, 1)).isfinite().any()
    assert not of_layer(layer, decode="gathered")(x.view(1, HIDDEN, 1, 1).repeat(1, 1, 1, 2)).isfinite().any()


# --- equal logits -----------------------------------------------------------------------------------------------------


def layer_of_twins() -> Any:
    """Experts 0 to 4 are one expert, and so are 5 to 10: whichever of equals are chosen, the sum must be the same."""
    layer = their_layer()
    experts = [layer.router.proj.weight, layer.router.per_expert_scale, layer.experts.gate_up_proj]
    for tensor in (*experts, layer.experts.down_proj):
        tensor[:5], tensor[5:] = tensor[0].clone(), tensor[5].clone()
    return layer


@pytest.mark.parametrize("tokens", [1, 9])
def test_of_experts_with_equal_logits_exactly_top_are_chosen(tokens: int) -> None:
    layer, x = layer_of_twins(), hidden_state(tokens)
    module = of_layer(layer)
    assert psnr(theirs(layer, x), ours(module, x)) >= 120
    weights, chosen = module.router(x.transpose(1, 2).unsqueeze(2))
    assert weights.shape == chosen.shape == (1, TOP, 1, tokens)
    assert all(len(set(column)) == TOP for column in chosen[0, :, 0].T.tolist())
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / TOP))


def test_a_row_of_zeros_chooses_experts_and_gives_zeros() -> None:
    layer, x = their_layer(), torch.zeros(1, 2, HIDDEN)
    assert torch.equal(ours(of_layer(layer), x), torch.zeros(2, 2, HIDDEN))


# --- what a mistake would look like -----------------------------------------------------------------------------------


def swap_gate_and_up(module: Experts) -> None:
    module.gate_up.copy_(torch.cat(list(reversed(module.gate_up.chunk(2, dim=1))), 1))


def interleave_gate_and_up(module: Experts) -> None:
    module.gate_up.copy_(module.gate_up.view(EXPERTS, WIDTH, 2, HIDDEN).transpose(1, 2).reshape(module.gate_up.shape))


def take_the_other_activation(module: Experts) -> None:
    module.activation = ACTIVATIONS["silu"]


def drop_the_experts_own_scale(module: Experts) -> None:
    module.router.expert_scale.fill_(1)


def drop_the_routers_scale(module: Experts) -> None:
    module.router.scale.fill_(1)


def drop_the_root_of_the_width(module: Experts) -> None:
    module.router.root_size = 1.0


def take_one_expert_less(module: Experts) -> None:
    module.router.top -= 1


def route_by_the_experts_norm(module: Experts) -> None:
    module.router.norm = module.pre_norm


def route_without_a_norm(module: Experts) -> None:
    module.router.norm = nn.Identity()


def share_no_norm_of_its_own(module: Experts) -> None:
    module.pre_norm.weight.fill_(1)


MUTANTS = [
    swap_gate_and_up,
    interleave_gate_and_up,
    take_the_other_activation,
    drop_the_experts_own_scale,
    drop_the_routers_scale,
    drop_the_root_of_the_width,
    take_one_expert_less,
    route_by_the_experts_norm,
    route_without_a_norm,
    share_no_norm_of_its_own,
]


@pytest.mark.parametrize("mutate", MUTANTS)
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_mistake_in_one_part_is_far_below_the_floor(mutate: Callable[[Experts], None], tokens: int) -> None:
    layer, x = their_layer(), hidden_state(tokens)
    module = of_layer(layer)
    mutate(module)
    assert psnr(theirs(layer, x)[1], ours(module, x)[1]) < 60


class Unnormalised(nn.Module):
    """The best of the softmax of all logits, not divided by their sum."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router, self.expert_scale = router, router.expert_scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router.proj(self.router.norm(x) * self.router.scale * self.router.root_size)
        best, chosen = logits.softmax(1).topk(TOP, 1)
        return best, chosen


def test_weights_that_do_not_sum_to_one_show_only_before_the_post_norm() -> None:
    """The post norm divides a token's factor away, but for its eps: only the sum before it tells them apart."""
    layer, x = their_layer(), hidden_state(9)
    module = of_layer(layer)
    module.router = Unnormalised(module.router)
    reference, mutant = theirs(layer, x), ours(module, x)
    assert psnr(reference[0], mutant[0]) < 60
    assert psnr(reference[1], mutant[1]) > 90


class ByThreshold(Unnormalised):
    """Every expert whose logit reaches that of the last chosen one."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router.proj(self.router.norm(x) * self.router.scale * self.router.root_size)
        reaches = logits >= logits.topk(TOP, 1)[0][:, -1:]
        weights = logits.where(reaches, torch.tensor(-torch.inf)).softmax(1)
        return weights, torch.arange(EXPERTS).view(1, -1, 1, 1).expand(weights.shape)


def layer_of_one_expert_and_its_equals() -> Any:
    """Experts 0 and 1 have opposite logits, so that one of them comes first; the others have one and the same, zero to
    the bit on every processor, and are one expert: whichever of them a router takes, it adds the same."""
    layer = their_layer()
    layer.router.proj.weight[1] = -layer.router.proj.weight[0]
    layer.router.proj.weight[2:] = 0
    for tensor in (layer.router.per_expert_scale, layer.experts.gate_up_proj, layer.experts.down_proj):
        tensor[2:] = tensor[2].clone()
    return layer


def test_a_threshold_chooses_too_many_of_equal_experts() -> None:
    layer, x = layer_of_one_expert_and_its_equals(), hidden_state(9)
    module, by_threshold = of_layer(layer), of_layer(layer)
    by_threshold.router = ByThreshold(by_threshold.router)
    first = module.router.proj(module.router.norm(x.mT.unsqueeze(2)) * module.router.scale)[0, 0]
    assert first.abs().min() > 0.01, "the first of every token is far from the others"
    assert psnr(theirs(layer, x), ours(module, x)) >= 120
    assert psnr(theirs(layer, x)[1], ours(by_threshold, x)[1]) < 60


# --- float16 ----------------------------------------------------------------------------------------------------------


def test_a_stream_scaled_down_gives_the_same_with_its_eps_scaled_too() -> None:
    """The residual of a large model is halved as often as float16 needs: norms of it are told by their eps."""
    layer, x = their_layer(), 0.002 * hidden_state(9)  # small enough that eps matters
    scale = 1 / 64
    stream_norm = NORM.model_copy(update={"eps": EPS * scale**2})
    spec = schema.Experts(
        num_experts=EXPERTS,
        intermediate_size=WIDTH,
        activation="gelu_tanh",
        router=schema.Router(kind="softmax", top=TOP),
    )
    scaled = build_experts(spec, HIDDEN, NORM, stream_norm)
    scaled.load_state_dict(of_layer(layer).state_dict())
    assert isinstance(scaled, Experts)
    assert psnr(theirs(layer, x), ours(scaled, scale * x)) >= 120
    assert psnr(theirs(layer, x), ours(of_layer(layer), scale * x)) < 60


def test_half_precision_survives_a_stream_whose_square_overflows() -> None:
    layer, x = their_layer(), 2000 * hidden_state(9)
    assert 20000 < x.abs().max() < 65504
    half = of_layer(layer).half()(x.half().transpose(1, 2).unsqueeze(2))
    assert half.isfinite().all()
    assert psnr(theirs(layer, x.half().float())[1], half.float().squeeze(2).mT.squeeze(0)) > 40
