"""Every scaling of transformers' ROPE_INIT_FUNCTIONS, in its words and in a recipe's, and the families it meets."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rotary_families import SPECS, Theirs, theirs
from torch import Tensor

from coreai_recipes.primitives.rotary import Rotary

LONGEST = 131072
Words = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Base:
    """A family whose heads turn in one of the ways that there are, before any scaling."""

    kind: str
    spec: dict[str, Any]
    theirs: Callable[..., Theirs]
    rope: dict[str, Any]

    def width(self, head_dim: int) -> int:
        """How many dimensions turn."""
        return int(self.spec.get("factor", 1.0) * head_dim)

    def allows(self, head_dim: int) -> bool:
        return self.width(head_dim) % 2 == 0


def gemma3(head_dim: int, **rope: Any) -> Theirs:
    """The rotary of Gemma 3's full layers, whose sliding ones have parameters of their own."""
    from transformers.models.gemma3 import modeling_gemma3
    from transformers.models.gemma3.configuration_gemma3 import Gemma3TextConfig

    config = Gemma3TextConfig(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        head_dim=head_dim,
        max_position_embeddings=LONGEST,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 12345.0},
            "full_attention": rope,
        },
    )

    def apply(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return modeling_gemma3.apply_rotary_pos_emb(x, x, cos, sin)[0]

    return Theirs(modeling_gemma3.Gemma3RotaryEmbedding(config), apply, "full_attention")


BASES = {
    "full, half": Base("full", {}, partial(theirs, "llama"), {}),
    "full, interleaved": Base(
        "full", {"pairing": "interleaved", "product": "float32"}, partial(theirs, "ernie4_5"), {}
    ),
    "full, interleaved, rounded angles": Base(
        "full", {"pairing": "interleaved", "product": "float32_rounded_angles"}, partial(theirs, "cohere"), {}
    ),
    "full, half, float32": Base("full", {"product": "float32"}, partial(theirs, "olmo2"), {}),
    "partial, half": Base("partial", {"factor": 0.25}, partial(theirs, "gpt_neox"), {"partial_rotary_factor": 0.25}),
    "partial, interleaved": Base(
        "partial", {"factor": 0.5, "pairing": "interleaved"}, partial(theirs, "glm"), {"partial_rotary_factor": 0.5}
    ),
    "full, half, one of two layer types": Base("full", {}, gemma3, {}),
}


def linear(pairs: int, factor: float = 8.0) -> Words:
    return {"rope_type": "linear", "factor": factor}, {"kind": "linear", "factor": factor}


def llama3(pairs: int, factor: float = 32.0) -> Words:
    bands = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return (
        {"rope_type": "llama3", "original_max_position_embeddings": 8192, **bands},
        {"kind": "llama3", "original_context": 8192, **bands},
    )


def dynamic(pairs: int, factor: float = 4.0) -> Words:
    """Up to max_position_embeddings, which is what `theirs` gives it."""
    return (
        {"rope_type": "dynamic", "factor": factor},
        {"kind": "dynamic", "factor": factor, "original_context": LONGEST},
    )


def yarn(pairs: int, factor: float = 32.0, original: int = 4096, **more: Any) -> Words:
    return (
        {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **more},
        {"kind": "yarn", "factor": factor, "original_context": original, **more},
    )


def longrope(pairs: int, factor: float | None = 32.0, original: int = 4096, **more: Any) -> Words:
    chance = random.Random(pairs)
    factors = {
        "short_factor": [1 + 0.2 * chance.random() for _ in range(pairs)],
        "long_factor": sorted(1 + 60 * chance.random() for _ in range(pairs)),
    }
    said = {} if factor is None else {"factor": factor}
    return (
        {"rope_type": "longrope", "original_max_position_embeddings": original, **said, **factors, **more},
        {"kind": "longrope", "original_context": original, "factor": factor or LONGEST / original, **factors, **more},
    )


@dataclass(frozen=True)
class Scaling:
    """Its words for so many pairs, and how many positions a session holds."""

    words: Callable[[int], Words]
    context: int = LONGEST


SCALINGS = {
    "linear": Scaling(linear),
    "llama3": Scaling(llama3),
    "dynamic": Scaling(dynamic),
    "yarn": Scaling(yarn),
    "yarn, slow ramp": Scaling(partial(yarn, factor=4.0, beta_fast=64.0, beta_slow=2.0)),
    "yarn, not truncated": Scaling(partial(yarn, truncate=False)),
    "yarn, mscales": Scaling(partial(yarn, factor=40.0, mscale=1.0, mscale_all_dim=0.7)),
    "yarn, equal mscales": Scaling(partial(yarn, factor=40.0, mscale=1.0, mscale_all_dim=1.0)),
    "yarn, attention factor": Scaling(partial(yarn, attention_factor=1.3)),
    "yarn, tiny context": Scaling(partial(yarn, original=16)),
    "longrope, long": Scaling(longrope),
    "longrope, short": Scaling(longrope, context=4096),
    "longrope, ratio": Scaling(partial(longrope, factor=None)),
    "longrope, attention factor": Scaling(partial(longrope, attention_factor=1.19)),
    "longrope, one token more": Scaling(longrope, context=4097),
}


def pair(
    base: str, scaling: str, head_dim: int, theta: float, words: Words | None = None
) -> tuple[Theirs, Rotary, Tensor]:
    """Their rotary, ours, and positions (1, S) from 0 to the last that a session holds."""
    family, case = BASES[base], SCALINGS[scaling]
    rope, spec = words or case.words(family.width(head_dim) // 2)
    reference = family.theirs(head_dim, rope_theta=theta, **{"rope_type": "default", **family.rope, **rope})
    built = SPECS[family.kind](kind=family.kind, theta=theta, scaling=spec, **family.spec)
    generator = torch.Generator().manual_seed(head_dim)
    edges = torch.tensor([0, 1, 2, min(4095, case.context - 1), case.context - 1])
    positions = torch.cat((edges, torch.randint(0, case.context, (19,), generator=generator)))[None]
    return reference, Rotary(built, head_dim, context=case.context), positions
