"""Transformers' own rotary classes, each behind one function, and the recipe's words for them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.primitives.rotary import Rotary
from coreai_recipes.recipe import schema

SPECS = {
    "full": schema.FullRotary,
    "partial": schema.PartialRotary,
    "proportional": schema.ProportionalRotary,
    "none": schema.NoRotary,
}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def ours(kind: str, head_dim: int, **spec: Any) -> Rotary:
    """Our Rotary of a kind."""
    return Rotary(SPECS[kind](kind=kind, **spec), head_dim)


@dataclass(frozen=True)
class Theirs:
    """A family's rotary class and the function that applies it."""

    rotary: Any
    apply: Callable[..., Any]
    layer_type: str | None = None

    @property
    def inv_freq(self) -> Tensor:
        """The frequencies that it holds, float32."""
        return getattr(self.rotary, f"{self.layer_type}_inv_freq" if self.layer_type else "inv_freq")

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, H, S, D) as the family's attention turns it."""
        if self.layer_type:  # Gemma 4 turns queries and keys one by one
            return self.apply(x, *self.rotary(x, positions, self.layer_type))
        cos, sin = self.rotary(x, positions)
        queries, keys = self.apply(x, x, cos, sin)
        assert torch.equal(queries, keys)
        return queries


def theirs(family: str, head_dim: int, **rope: Any) -> Theirs:
    """The rotary of `family` (a folder of transformers.models) with `rope` as its rope_parameters."""
    prefix = {"glm": "Glm", "gpt_neox": "GPTNeoX", "ernie4_5": "Ernie4_5", "olmo2": "Olmo2"}.get(family)
    prefix = prefix or family.title().replace("_", "")
    modeling = import_module(f"transformers.models.{family}.modeling_{family}")
    configuration = import_module(f"transformers.models.{family}.configuration_{family}")
    parameters = {"rope_type": "default", **rope}
    config_class = getattr(configuration, f"{prefix}Config")
    # families without a field `head_dim` divide hidden_size by the heads; the others are given it
    config = config_class(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    return Theirs(getattr(modeling, f"{prefix}RotaryEmbedding")(config), modeling.apply_rotary_pos_emb)


def gemma4(layer_type: str, head_dim: int, **rope: Any) -> Theirs:
    """Gemma 4's rotary of `full_attention` or `sliding_attention`: each has a head_dim of its own."""
    from transformers.models.gemma4 import modeling_gemma4
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    is_full = layer_type == "full_attention"
    other = {"rope_type": "default", "rope_theta": 12345.0}
    config = Gemma4TextConfig(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        head_dim=48 if is_full else head_dim,
        global_head_dim=head_dim if is_full else 48,
        rope_parameters={
            "sliding_attention": other if is_full else rope,
            "full_attention": rope if is_full else other,
        },
    )
    return Theirs(modeling_gemma4.Gemma4TextRotaryEmbedding(config), modeling_gemma4.apply_rotary_pos_emb, layer_type)


@dataclass(frozen=True)
class Family:
    """How a family turns its heads: the recipe's words, and transformers' module for a head_dim and theta."""

    kind: str
    theirs: Callable[..., Theirs]
    rope: dict[str, Any]
    spec: dict[str, Any]

    def pair(self, head_dim: int, theta: float) -> tuple[Theirs, Rotary]:
        """Their rotary and ours."""
        return self.theirs(head_dim, rope_theta=theta, **self.rope), ours(self.kind, head_dim, theta=theta, **self.spec)

    def allows(self, head_dim: int) -> bool:
        """Whether a recipe may say so: the rotated width is whole pairs."""
        return self.kind != "partial" or int(self.spec["factor"] * head_dim) % 2 == 0


def _partial(family: str, factor: float, **spec: Any) -> Family:
    return Family("partial", partial(theirs, family), {"partial_rotary_factor": factor}, {"factor": factor, **spec})


def _proportional(factor: float) -> Family:
    rope = {"rope_type": "proportional", "partial_rotary_factor": factor}
    return Family("proportional", partial(gemma4, "full_attention"), rope, {"factor": factor})


def _full(family: str, rope: dict[str, Any] | None = None, **spec: Any) -> Family:
    return Family("full", partial(theirs, family), rope or {}, spec)


FAMILIES: dict[str, Family] = {
    "llama": _full("llama"),
    "llama3_scaling": _full(
        "llama",
        {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192, **LLAMA3},
        scaling={"kind": "llama3", "factor": 32.0, "original_context": 8192, **LLAMA3},
    ),
    "linear_scaling": _full("llama", {"rope_type": "linear", "factor": 8.0}, scaling={"kind": "linear", "factor": 8.0}),
    "gemma4_sliding": Family("full", partial(gemma4, "sliding_attention"), {"rope_type": "default"}, {}),
    "cohere": _full("cohere", pairing="interleaved", product="float32_rounded_angles"),
    "ernie4_5": _full("ernie4_5", pairing="interleaved", product="float32"),
    "olmo2": _full("olmo2", product="float32"),
    "phi3": _partial("phi3", 0.75),
    "phi3_narrow": _partial("phi3", 0.4),
    "gpt_neox": _partial("gpt_neox", 0.25),
    "gpt_neox_odd": _partial("gpt_neox", 0.3),
    "glm": _partial("glm", 0.5, pairing="interleaved"),
    "glm_narrow": _partial("glm", 0.3, pairing="interleaved"),
    "gemma4_full": _proportional(0.25),
    "gemma4_wide": _proportional(0.7),
}
