"""Which dimensions of queries and keys turn, and how fast."""

import math
from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.recipe.kinds import Open
from coreai_recipes.recipe.schema.fields import (
    Factor,
    Flag,
    Positive,
    PositiveFloat,
    Precision,
    Share,
    Spec,
)


class LinearScaling(Spec):
    """Every frequency divided by `factor`."""

    kind: Literal["linear"]
    factor: Factor = Field(description="factor by which the context is extended; Llama 3.2 uses 32")


class Llama3Scaling(Spec):
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones kept, a smooth transition between."""

    kind: Literal["llama3"]
    factor: Factor = Field(description="factor by which the context is extended; Llama 3.2 uses 32")
    low_freq_factor: PositiveFloat = Field(
        description="wavelengths above original_context / low_freq_factor are divided; Llama 3 uses 1"
    )
    high_freq_factor: PositiveFloat = Field(
        description="wavelengths below original_context / high_freq_factor are kept; Llama 3 uses 4"
    )
    original_context: Positive = Field(description="the context the model was trained with before scaling")


class DynamicScaling(Spec):
    """theta grows with the length of a call beyond `original_context`: within it nothing is scaled, and a program with
    a cache ends there."""

    kind: Literal["dynamic"]
    factor: Factor = Field(description="factor by which a longer context would be extended")
    original_context: Positive = Field(
        description="the context the model was trained with (max_position_embeddings); export.context may not exceed it"
    )


class NTKScaling(Spec):
    """theta times alpha^(R / (R - 2)), whatever the length: HunYuan, where it is called `dynamic` with an `alpha`."""

    kind: Literal["ntk"]
    alpha: Factor = Field(description="the base of theta's factor; HunYuan uses 1000")


class YarnScaling(Spec):
    """Pairs that turn more than beta_fast times in the original context are kept, those that turn less than beta_slow
    times divided by `factor`, a ramp between; cos and sin are multiplied by an attention factor."""

    kind: Literal["yarn"]
    factor: Factor = Field(description="factor by which the context is extended; gpt-oss uses 32, DeepSeek V3 40")
    original_context: Positive = Field(description="the context the model was trained with before scaling")
    beta_fast: PositiveFloat = Field(default=32.0, description="rotations above which a pair is kept")
    beta_slow: PositiveFloat = Field(default=1.0, description="rotations below which a pair is divided")
    truncate: Flag = Field(default=True, description="start and end the ramp at whole pairs; gpt-oss does not")
    attention_factor: PositiveFloat | None = Field(
        default=None, description="factor of cos and sin; by default computed from factor and the mscales"
    )
    mscale: PositiveFloat | None = Field(default=None, description="numerator of the attention factor (DeepSeek)")
    mscale_all_dim: PositiveFloat | None = Field(
        default=None, description="denominator of the attention factor (DeepSeek)"
    )

    @property
    def angle_factor(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return float(self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim))
        return self.magnitude(1)

    def magnitude(self, mscale: float) -> float:
        """0.1 * mscale * ln(factor) + 1 (transformers' get_mscale)."""
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


class LongRopeScaling(Spec):
    """Each frequency divided by a factor of its own; cos and sin are multiplied by an attention factor.

    There are two lists, of which one is chosen when the package is built: the long factors when export.context exceeds
    the original context.
    """

    kind: Literal["longrope"]
    factor: PositiveFloat = Field(
        description="factor by which the context is extended: max_position_embeddings / original_context; Phi-3 uses 32"
    )
    original_context: Annotated[int, Field(ge=2, le=2**31 - 1, strict=True)] = Field(
        description="the longest context that uses the short factors; Phi-3 uses 4096"
    )
    short_factor: Annotated[list[PositiveFloat], Field(min_length=1, max_length=4096)] = Field(
        description="divisor of each pair's frequency within the original context"
    )
    long_factor: Annotated[list[PositiveFloat], Field(min_length=1, max_length=4096)] = Field(
        description="divisor of each pair's frequency in a longer context"
    )
    attention_factor: PositiveFloat | None = Field(
        default=None, description="factor of cos and sin; defaults to sqrt(1 + ln(factor) / ln(original_context))"
    )

    @property
    def angle_factor(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1.0 else math.sqrt(1 + math.log(self.factor) / math.log(self.original_context))

    def is_long(self, context: int | None) -> bool:
        """Whether a session of `context` positions takes the long factors."""
        return context is not None and context > self.original_context


Scaling = Annotated[
    LinearScaling | Llama3Scaling | DynamicScaling | NTKScaling | YarnScaling | LongRopeScaling,
    Field(discriminator="kind"),
]


class TurningRotary(Spec):
    """The fields that every rotary has but `none`."""

    theta: PositiveFloat = Field(description="base of the geometric series of frequencies (rope_theta)")
    pairing: Literal["half", "interleaved"] = Field(
        default="half", description="`half` pairs (i, i + R/2), `interleaved` pairs (2i, 2i + 1)"
    )
    backwards: Flag = Field(default=False, description="turn by minus the angle (nanochat)")
    scaling: Scaling | None = Field(default=None, description="how frequencies change beyond the trained context")
    precision: Precision = Field(default="float32", description="precision of angles, cos and sin")
    lossy: Flag = Field(default=False, description="must be true to allow a precision below float32")
    product: Literal["model", "float32", "float32_rounded_angles"] = Field(
        default="model", description="the dtype in which half-precision activations are rotated; families differ"
    )


class FullRotary(TurningRotary):
    """The whole head rotates: Llama, Qwen, Mistral, Gemma's sliding layers."""

    kind: Literal["full"]


class PartialRotary(TurningRotary):
    """The first int(factor * head_dim) dimensions rotate, in pairs among themselves: Phi, GPT-NeoX, StableLM, GLM."""

    kind: Literal["partial"]
    factor: Share = Field(description="the share of the head that rotates; GPT-NeoX uses 0.25, Phi-2 0.4")


class ProportionalRotary(TurningRotary):
    """Pairs span the whole head, (i, i + head_dim/2); only the first factor * head_dim/2 of them rotate: Gemma 4."""

    kind: Literal["proportional"]
    factor: Share = Field(description="the share of the head that rotates; Gemma 4 uses 0.25")
    pairing: Literal["half"] = Field(default="half", description="pairs (i, i + head_dim/2)")
    scaling: Annotated[LinearScaling, Field()] | None = Field(
        default=None, description="how frequencies change beyond the trained context"
    )


class NoRotary(Spec):
    """Layers without positions: SmolLM3's every fourth, Cohere 2's full ones."""

    kind: Literal["none"]


Rotary = Annotated[FullRotary | PartialRotary | ProportionalRotary | NoRotary, Open("rotary")]
