"""transformers' mixtures of experts in place of an MLP, each beside the recipe's words for it and our module."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coreai_recipes.primitives.mlp import build_mlp
from coreai_recipes.recipe import schema

HIDDEN, WIDTH, SHARED_WIDTH, EXPERTS, TOP = 52, 36, 28, 12, 3
NAMES = {
    "router.proj.weight": "gate.weight",
    "gate_up": "experts.gate_up_proj",
    "down": "experts.down_proj",
}
SHARED_NAMES = {f"shared.{part}.weight": f"shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")}
SIGMOID_NAMES = {**NAMES, **SHARED_NAMES, "router.bias": "gate.e_score_correction_bias"}
QWEN2_NAMES = {
    **NAMES,
    **{f"shared.{part}.weight": f"shared_expert.{part}_proj.weight" for part in ("gate", "up", "down")},
    "shared_factor.weight": "shared_expert_gate.weight",
}


GPT_OSS_NAMES = {
    "router.proj.weight": "router.weight",
    "router.proj.bias": "router.bias",
    "gate_up": "transposed alternating experts.gate_up_proj",
    "gate_up_bias": "alternating experts.gate_up_proj_bias",
    "down": "transposed experts.down_proj",
    "down_bias": "experts.down_proj_bias",
}


@dataclass(frozen=True)
class Mixture:
    """A block of transformers' with random weights, and what a recipe says of it."""

    block: Callable[[], Any]
    router: dict[str, Any]
    names: dict[str, str] = field(default_factory=lambda: NAMES)
    shared: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    def spec(self, decode: str = "gathered", **router: Any) -> schema.MixtureMLP:
        return schema.MixtureMLP.model_validate(
            {
                "kind": "moe",
                "num_experts": EXPERTS,
                "intermediate_size": WIDTH,
                "activation": "silu",
                "router": {"top": TOP, **self.router, **router},
                "shared": self.shared,
                "decode": decode,
                **self.more,
            }
        )

    def ours(self, theirs: nn.Module, decode: str = "gathered", **router: Any) -> nn.Module:
        """Our module with the weights of transformers'."""
        module = build_mlp(self.spec(decode, **router), HIDDEN)
        stored = theirs.state_dict()
        for name, parameter in module.named_parameters():
            tensor = stored[self.names[name].rpartition(" ")[2]]
            if self.names[name].startswith("transposed"):
                tensor = tensor.transpose(1, 2)
            if "alternating" in self.names[name]:
                tensor = torch.cat((tensor[:, 0::2], tensor[:, 1::2]), 1)
            parameter.copy_(tensor.reshape(parameter.shape))
        return module


def random_block(make: Callable[[], nn.Module]) -> Any:
    """Every parameter and buffer off its default, logits of the router far apart."""
    block = make().eval()
    for name, tensor in block.state_dict().items():
        random = torch.randn_like(tensor)
        tensor.copy_(0.3 * random if tensor.dim() == 1 else random * tensor.shape[-1] ** -0.5)
        if "gate.weight" in name:
            tensor.mul_(2)
    return block


def _block(family: str, class_name: str, config_name: str, **changes: Any) -> nn.Module:
    from importlib import import_module

    modeling = import_module(f"transformers.models.{family}.modeling_{family}")
    configuration = import_module(f"transformers.models.{family}.configuration_{family}")
    config = getattr(configuration, config_name)(**{"hidden_size": HIDDEN, "num_experts_per_tok": TOP, **changes})
    config._experts_implementation = "eager"
    return getattr(modeling, class_name)(config)


def _make(*names: str, **changes: Any) -> Callable[[], Any]:
    return partial(random_block, partial(_block, *names, **changes))


QWEN3 = ("qwen3_moe", "Qwen3MoeSparseMoeBlock", "Qwen3MoeConfig")
DOTS1 = ("dots1", "Dots1MoE", "Dots1Config")
OF_DOTS1 = {"n_routed_experts": EXPERTS, "moe_intermediate_size": WIDTH, "n_shared_experts": 2}
TWO_SHARED = {"intermediate_size": WIDTH, "count": 2}
SIGMOID = {"score": "sigmoid", "bias": "choice"}
PLAIN_NAMES = {
    "router.proj.weight": "gate.weight",
    "router.bias": "gate.e_score_correction_bias",
    "up": "experts.up_proj",
    "down": "experts.down_proj",
    **{f"shared.{part}.weight": f"shared_experts.{part}_proj.weight" for part in ("up", "down")},
}

MIXTURES = {
    "qwen3_moe": Mixture(
        _make(*QWEN3, num_experts=EXPERTS, moe_intermediate_size=WIDTH, norm_topk_prob=True),
        {"score": "softmax", "renorm": True},
    ),
    "qwen3_moe, not renormed": Mixture(
        _make(*QWEN3, num_experts=EXPERTS, moe_intermediate_size=WIDTH, norm_topk_prob=False), {"score": "softmax"}
    ),
    "qwen2_moe": Mixture(
        _make(
            "qwen2_moe", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig",
            num_experts=EXPERTS, moe_intermediate_size=WIDTH, shared_expert_intermediate_size=SHARED_WIDTH,
        ),
        {"score": "softmax"},
        QWEN2_NAMES,
        {"intermediate_size": SHARED_WIDTH, "gate": True},
    ),
    "mixtral": Mixture(
        _make(
            "mixtral", "MixtralSparseMoeBlock", "MixtralConfig", num_local_experts=EXPERTS, intermediate_size=WIDTH
        ),
        {"score": "softmax", "renorm": True},
    ),
    "granitemoe": Mixture(
        _make(
            "granitemoe", "GraniteMoeMoE", "GraniteMoeConfig", num_local_experts=EXPERTS, intermediate_size=WIDTH
        ),
        {"score": "softmax", "renorm": True},
        {**NAMES, "router.proj.weight": "router.weight"},
    ),
    "phimoe": Mixture(
        _make(
            "phimoe", "PhimoeSparseMoeBlock", "PhimoeConfig", num_local_experts=EXPERTS, intermediate_size=WIDTH,
            num_experts_per_tok=2, router_jitter_noise=0.3,
        ),
        {"score": "sparsemixer", "jitter": 0.3, "top": 2},
        {**NAMES, "router.proj.weight": "router.weight"},
    ),
    "nemotron_h": Mixture(
        _make(
            "nemotron_h", "NemotronHMoE", "NemotronHConfig", n_routed_experts=EXPERTS, moe_intermediate_size=WIDTH,
            moe_shared_expert_intermediate_size=SHARED_WIDTH, routed_scaling_factor=2.5,
        ),
        {**SIGMOID, "renorm": True, "scale": 2.5},
        PLAIN_NAMES,
        {"intermediate_size": SHARED_WIDTH},
        {"gated": False, "activation": "relu2"},
    ),
    "dots1": Mixture(
        _make(*DOTS1, **OF_DOTS1, norm_topk_prob=True, routed_scaling_factor=2.5),
        {**SIGMOID, "renorm": True, "scale": 2.5},
        SIGMOID_NAMES,
        TWO_SHARED,
    ),
    "dots1, not renormed": Mixture(
        _make(*DOTS1, **OF_DOTS1, norm_topk_prob=False), SIGMOID, SIGMOID_NAMES, TWO_SHARED
    ),
    "dots1, groups": Mixture(
        _make(*DOTS1, **OF_DOTS1, norm_topk_prob=True, n_group=4, topk_group=2, routed_scaling_factor=1.7),
        {**SIGMOID, "renorm": True, "scale": 1.7, "groups": 4, "top_groups": 2},
        SIGMOID_NAMES,
        TWO_SHARED,
    ),
    "deepseek_v2, groups": Mixture(
        _make(
            "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config", **OF_DOTS1, num_attention_heads=4,
            topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=1.7,
        ),
        {"score": "softmax", "scale": 1.7, "groups": 4, "top_groups": 2, "groups_by": "best"},
        {**NAMES, **SHARED_NAMES},
        TWO_SHARED,
    ),
    "gpt_oss": Mixture(
        _make(
            "gpt_oss", "GptOssMLP", "GptOssConfig",
            num_local_experts=EXPERTS, intermediate_size=WIDTH, swiglu_limit=1.5, swiglu_alpha=1.3,
        ),
        {"score": "softmax", "renorm": True, "bias": "logits"},
        GPT_OSS_NAMES,
        more={"bias": True, "clamp": {"limit": 1.5, "alpha": 1.3}},
    ),
}  # fmt: skip


def hidden_state(tokens: int) -> Tensor:
    return 3 * torch.randn(1, tokens, HIDDEN)


def engine(module: nn.Module, x: Tensor) -> Tensor:
    """Our module on x (1, S, C), in the engine's layout inside."""
    y: Tensor = module(x.transpose(1, 2).unsqueeze(2))
    return y.squeeze(2).transpose(1, 2)


def compared(name: str, decode: str, tokens: int) -> tuple[Tensor, Tensor]:
    mixture = MIXTURES[name]
    block, x = mixture.block(), hidden_state(tokens)
    return theirs(block, x), engine(mixture.ours(block, decode), x)


def theirs(block: nn.Module, x: Tensor) -> Tensor:
    """What transformers' block gives; gpt-oss's gives the router's scores too."""
    y = block(x)
    return y[0] if isinstance(y, tuple) else y
