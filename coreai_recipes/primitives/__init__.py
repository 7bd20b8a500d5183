"""The torch modules that recipes are composed of: one file a noun, one implementation each, registered by kind."""

from coreai_recipes.primitives import (
    attention,
    differential,
    embedding,
    experts,
    gated_delta,
    head,
    latent,
    lightning,
    mamba1,
    mamba2,
    mixture_attention,
    mlp,
    norm,
    rg_lru,
    rotary,
    short_conv,
)
from coreai_recipes.primitives.registry import primitive, register, registered

__all__ = [
    "attention",
    "differential",
    "embedding",
    "experts",
    "gated_delta",
    "head",
    "latent",
    "lightning",
    "mamba1",
    "mamba2",
    "mixture_attention",
    "mlp",
    "norm",
    "primitive",
    "register",
    "registered",
    "rg_lru",
    "rotary",
    "short_conv",
]
