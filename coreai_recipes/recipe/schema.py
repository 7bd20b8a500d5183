"""What a recipe can say: frozen pydantic models, discriminated by `kind`, with every number explicit.

The JSON Schema of editors is generated from these classes, and `rules.py` holds what relates one field to another.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from coreai_recipes.recipe import rules

Positive = Annotated[int, Field(gt=0, le=2**31 - 1, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["float32", "float16", "bfloat16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
KindName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]


class Spec(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- rotary ---------------------------------------------------------------------------------------------------------


class LinearScaling(Spec):
    """Every frequency divided by `factor`."""

    kind: Literal["linear"]
    factor: Annotated[float, Field(ge=1)]


class Llama3Scaling(Spec):
    """Llama 3.1's: low frequencies divided by `factor`, high ones kept, a smooth passage between."""

    kind: Literal["llama3"]
    factor: Annotated[float, Field(ge=1)]
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_context: Positive = Field(description="The context the model was trained with before scaling.")


Scaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="kind")]


class TurningRotary(Spec):
    """What all rotaries that turn anything have in common."""

    theta: PositiveFloat = Field(description="Base of the geometric series of frequencies (rope_theta).")
    pairing: Literal["half", "interleaved"] = Field(
        "half", description="half pairs (i, i + R/2), interleaved pairs (2i, 2i + 1)."
    )
    scaling: Scaling | None = None
    precision: Precision = Field("float32", description="Precision of angles, cos and sin.")
    lossy: bool = Field(False, description="Must be true to allow a precision below float32.")
    product: Literal["model", "float32", "float32_rounded_angles"] = Field(
        "model", description="The dtype in which half-precision activations are rotated; families differ."
    )


class FullRotary(TurningRotary):
    """All of the head turns: Llama, Qwen, Mistral, Gemma's sliding layers."""

    kind: Literal["full"]


class PartialRotary(TurningRotary):
    """The first int(factor * head_dim) dimensions turn, paired among themselves: Phi, GPT-NeoX, StableLM, GLM."""

    kind: Literal["partial"]
    factor: Annotated[float, Field(gt=0, le=1)] = Field(description="The share of the head that rotates.")


class ProportionalRotary(TurningRotary):
    """Pairs span the whole head, (i, i + head_dim/2); only the first factor * head_dim/2 of them turn: Gemma 4."""

    kind: Literal["proportional"]
    factor: Annotated[float, Field(gt=0, le=1)] = Field(description="The share of the head that rotates.")
    pairing: Literal["half"] = "half"


class NoRotary(Spec):
    """Layers without positions: SmolLM3's every fourth, Cohere 2's full ones."""

    kind: Literal["none"]


Rotary = Annotated[FullRotary | PartialRotary | ProportionalRotary | NoRotary, Field(discriminator="kind")]


# --- norms, attention, mlp ------------------------------------------------------------------------------------------


class RMSNorm(Spec):
    """x / rms(x) * weight."""

    kind: Literal["rms"]
    eps: PositiveFloat
    weight: Literal["w", "1+w", "none"] = Field("w", description="How the stored weight enters.")


class LayerNorm(Spec):
    """(x - mean) / std * weight + bias."""

    kind: Literal["layer"]
    eps: PositiveFloat
    weight: Literal["w", "1+w", "none"] = "w"
    bias: bool = True


Norm = Annotated[RMSNorm | LayerNorm, Field(discriminator="kind")]


class QKNorm(Spec):
    """Norm of queries and keys before the rotary; what it does not say it takes from the model's norm."""

    over: Literal["head"] = Field(description="head: one norm over each head's dimensions.")
    norm: Norm | None = None


class Attention(Spec):
    """What full and sliding attention have in common. Scores are scaled by `scale`, head_dim^-0.5 if unsaid."""

    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    bias: Literal["none", "qkv", "qkvo"] = Field("none", description="Which projections carry a bias.")
    qk_norm: QKNorm | None = None
    v_norm: bool = Field(False, description="RMS norm of each value head, without a weight (Gemma 4).")
    scale: PositiveFloat | None = Field(None, description="Factor of the scores; head_dim^-0.5 if unsaid.")
    softcap: PositiveFloat | None = Field(None, description="Scores become softcap * tanh(scores / softcap) (Gemma 2).")
    shares_kv_with: KindName | None = Field(
        None, description="Read the cache of the last layer of that kind; own no k and v (Gemma 4)."
    )

    @property
    def score_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale


class FullAttention(Attention):
    """Every earlier position is seen."""

    kind: Literal["full"]


class SlidingAttention(Attention):
    """Query i sees keys j with 0 <= i - j < window."""

    kind: Literal["sliding"]
    window: Positive


AttentionKind = Annotated[FullAttention | SlidingAttention, Field(discriminator="kind")]


class GatedMLP(Spec):
    """down(activation(gate(x)) * up(x))."""

    kind: Literal["gated"]
    activation: Literal["silu", "gelu_tanh"]
    intermediate_size: Positive
    bias: bool = False


MLP = Annotated[GatedMLP, Field()]

Placement = Literal["pre", "sandwich"]


class LayerKind(Spec):
    """Layers of one kind differ in their weights only."""

    attention: AttentionKind
    rotary: Rotary
    mlp: MLP
    norm: Norm | None = Field(None, description="The norms of this kind, when they are not the model's.")
    placement: Placement | None = Field(None, description="Where this kind's norms stand, when not where the model's.")


# --- the model ------------------------------------------------------------------------------------------------------


class PerLayerEmbedding(Spec):
    """Gemma 4's per-layer embeddings: a second table of num_layers * size columns."""

    size: Positive
    vocab_size: Positive


class Embedding(Spec):
    """The token table."""

    scale: PositiveFloat | Literal["sqrt_hidden_size"] = 1.0
    per_layer: PerLayerEmbedding | None = None


class Head(Spec):
    """From the last hidden state to logits."""

    tied: bool = Field(description="Whether the head is the embedding's table.")
    softcap: PositiveFloat | None = Field(None, description="Logits become softcap * tanh(logits / softcap).")


class Repeat(Spec):
    """A pattern of kinds, repeated."""

    repeat: Annotated[int, Field(gt=0, le=1024, strict=True)]
    of: Annotated[list[KindName], Field(min_length=1, max_length=1024)]


class Model(Spec):
    """The architecture."""

    vocab_size: Positive
    hidden_size: Positive
    embedding: Embedding = Embedding()
    norm: Norm
    placement: Placement = Field(
        "pre", description="pre: x + f(norm(x)); sandwich: x + norm(f(norm(x))); where the norms of a block stand."
    )
    head: Head
    kinds: Annotated[dict[KindName, LayerKind], Field(min_length=1, max_length=64)]
    layers: Annotated[list[KindName | Repeat], Field(min_length=1, max_length=1024)]

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each layer, in order."""
        return tuple(rules.expand_layers(self.layers))

    @property
    def embedding_scale(self) -> float:
        scale = self.embedding.scale
        return math.sqrt(self.hidden_size) if scale == "sqrt_hidden_size" else float(scale)

    def norm_of(self, kind: str) -> RMSNorm | LayerNorm:
        return self.kinds[kind].norm or self.norm

    def placement_of(self, kind: str) -> Placement:
        return self.kinds[kind].placement or self.placement


class Functions(Spec):
    """The functions of the package and how many tokens each takes at a call."""

    prefill: Annotated[int, Field(ge=2, le=4096, strict=True)] = 64
    decode: Literal[1] = 1
    score: Annotated[int, Field(ge=2, le=4096, strict=True)] | None = None

    @property
    def queries(self) -> dict[str, int]:
        """Query length by function, `decode` first as the package's default."""
        sizes = {"decode": self.decode, "prefill": self.prefill}
        return sizes if self.score is None else {**sizes, "score": self.score}


class Export(Spec):
    """How the package is written."""

    format: Literal["coreml"] = "coreml"
    target: Literal["iOS18"] = "iOS18"
    compute_units: Literal["cpu_and_ne", "cpu_and_gpu", "cpu_only", "all"] = "cpu_and_ne"
    precision: Literal["float16"] = "float16"
    context: Annotated[int, Field(ge=2, le=1 << 20, strict=True)] = Field(description="Positions a session can hold.")
    functions: Functions = Functions()
    states: Literal["per_kind"] = "per_kind"


class Reference(Spec):
    """The transformers model that the recipe must equal."""

    model_type: str
    checkpoint: str | None = Field(None, description="Where the weights come from when the user names no other place.")


class Weights(Spec):
    """Which family's tensor names the checkpoint uses."""

    names: str


class Recipe(Spec):
    """One language model, described as data."""

    VERSION: ClassVar[int] = 1

    recipe: Literal[1]
    name: Name
    reference: Reference | None
    model: Model
    weights: Weights
    export: Export

    @model_validator(mode="after")
    def _hold_the_rules(self) -> Self:
        problems = rules.find_problems(self.model_dump())
        if problems:
            summary = "; ".join(f"{'.'.join(map(str, p.location))}: {p.message}" for p in problems)
            context: dict[str, Any] = {"problems": problems, "summary": summary}
            raise PydanticCustomError("rules", "{summary}", context)
        return self
