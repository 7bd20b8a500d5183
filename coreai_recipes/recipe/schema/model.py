"""A kind of layer, and how kinds are stacked."""

import math
from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.recipe import sizes
from coreai_recipes.recipe.layer_order import expand_layers
from coreai_recipes.recipe.schema.attention import (
    LatentAttention,
    LayerNorm,
    Norm,
    RMSNorm,
)
from coreai_recipes.recipe.schema.attention_kinds import AttentionKind
from coreai_recipes.recipe.schema.fields import (
    Flag,
    HiddenSize,
    KindName,
    Positions,
    PositiveFloat,
    Spec,
    Vocabulary,
)
from coreai_recipes.recipe.schema.matrix_states import Mamba2
from coreai_recipes.recipe.schema.mlp import (
    MLP,
    Activation,
    Experts,
)
from coreai_recipes.recipe.schema.rotary import (
    Rotary,
    YarnScaling,
)

Placement = Literal[
    "pre", "from_norm", "post", "sandwich", "sandwich_mlp", "pre_mlp", "parallel", "parallel_two_norms", "add"
]


class Residual(Spec):
    """What becomes of a block: stream * x + block * f(x)."""

    stream: PositiveFloat = Field(default=1.0, description="factor of what the block is added to (mlp_alpha_factor)")
    block: PositiveFloat = Field(default=1.0, description="factor of what the block gives (mlp_beta_factor)")


class LayerKind(Spec):
    """One kind of layer; its layers differ only in their weights."""

    attention: AttentionKind = Field(description="the heads, and the positions that a query sees")
    state_space: Mamba2 | None = Field(
        default=None,
        description="a state space beside attention, which reads the same; their results add up (Falcon-H1)",
    )
    rotary: Rotary = Field(description="which dimensions of queries and keys rotate, and how fast")
    mlp: MLP = Field(description="the MLP, or a mixture of experts instead")
    experts: Experts | None = Field(default=None, description="a mixture of experts beside the MLP (Gemma 4 26B-A4B)")
    norm: Norm | None = Field(default=None, description="the norms of this kind, if they differ from the model's")
    placement: Placement | None = Field(
        default=None, description="the placement of this kind's norms, if it differs from the model's"
    )
    attention_residual: Residual = Field(
        default=Residual(), description="factors where attention is added to the stream (MiniMax)"
    )
    mlp_residual: Residual = Field(
        default=Residual(), description="factors where the MLP is added to the stream (MiniMax)"
    )

    @property
    def score_scale(self) -> float:
        """The factor of scores."""
        scaling = getattr(self.rotary, "scaling", None)
        scale = self.attention.score_scale
        if isinstance(self.attention, LatentAttention) and isinstance(scaling, YarnScaling) and scaling.mscale_all_dim:
            magnitude = scaling.magnitude(scaling.mscale_all_dim)
            return scale * magnitude * magnitude
        return scale


class PerLayerEmbedding(Spec):
    """Gemma 4's per-layer embeddings: a second table of num_layers * size columns."""

    size: Annotated[int, Field(gt=0, le=sizes.MAX_PER_LAYER, strict=True)] = Field(description="columns per layer")
    vocab_size: Vocabulary = Field(description="rows of the second table")
    activation: Literal["silu", "gelu_tanh"] = Field(
        default="gelu_tanh", description="activation of the gate in each layer"
    )


class AltUp(Spec):
    """Several streams between layers, which each layer predicts from one another; its blocks compute one of them, and
    what they change corrects all (Gemma 3n)."""

    num_inputs: Annotated[int, Field(ge=2, le=sizes.MAX_STREAMS, strict=True)] = Field(
        description="number of streams (altup_num_inputs)"
    )
    active_idx: Annotated[int, Field(ge=0, lt=sizes.MAX_STREAMS, strict=True)] = Field(
        default=0, description="the stream that blocks compute (altup_active_idx)"
    )


class LearnedPositions(Spec):
    """A row for each position, added to the token's: learned (GPT-2, OPT), or sines of the position, which are computed
    as weights are read."""

    count: Positions = Field(description="number of learned positions; the context cannot be longer")
    offset: Annotated[int, Field(ge=0, le=1024, strict=True)] = Field(
        default=0, description="rows before that of position 0; OPT has 2"
    )
    sines: Literal["closed", "open"] | None = Field(
        default=None,
        description="rows are sines, then cosines of the position times frequencies from 1 to 1/10000: `closed`, the "
        "last is that (XGLM); `open`, one step before it (CTRL)",
    )


class Embedding(Spec):
    """The token table, and what its rows pass before the first layer."""

    scale: PositiveFloat | Literal["sqrt_hidden_size", "sqrt_hidden_size_bfloat16"] = Field(
        default=1.0, description="factor of the embedding; Gemma uses sqrt_hidden_size, RecurrentGemma that in bfloat16"
    )
    per_layer: PerLayerEmbedding | None = Field(default=None, description="Gemma 4's second table")
    width: HiddenSize | None = Field(
        default=None,
        description="columns of the table, if not hidden_size; projections lead in, and out again before the head "
        "(OPT-350m)",
    )
    norm: Norm | None = Field(default=None, description="a norm after the embedding (BLOOM)")
    positions: LearnedPositions | None = Field(default=None, description="learned positions (GPT-2, OPT)")


class HeadTransform(Spec):
    """norm(activation(dense(x))) before the head (ModernBERT's decoder)."""

    activation: Activation = Field(description="activation behind the projection (classifier_activation)")
    bias: Flag = Field(default=False, description="add a bias to the projection (classifier_bias)")
    norm: Norm = Field(description="the norm behind it")


class Head(Spec):
    """From the last hidden state to logits."""

    tied: Flag = Field(description="use the embedding table as the head (tie_word_embeddings)")
    bias: Flag = Field(default=False, description="add a bias to the logits (Phi)")
    scale: PositiveFloat = Field(
        default=1.0, description="factor of the logits (Cohere's logit_scale, 1 / Granite's logits_scaling)"
    )
    softcap: PositiveFloat | None = Field(default=None, description="logits become softcap * tanh(logits / softcap)")
    transform: HeadTransform | None = Field(
        default=None, description="a layer of the head's own (ModernBERT's decoder)"
    )
    norm: Norm | Literal["model", "none"] = Field(
        default="model", description="the norm before the head, if it differs from the model's; `none` for no norm"
    )


class Repeat(Spec):
    """A pattern of kinds, repeated."""

    repeat: Annotated[int, Field(ge=1, le=sizes.MAX_LAYERS, strict=True)] = Field(
        description="how often the pattern repeats"
    )
    of: Annotated[list[KindName], Field(min_length=1, max_length=sizes.MAX_LAYERS)] = Field(
        description="kinds, in the order of the layers"
    )


class Stack(Spec):
    """The layers of a model or of a draft, of one or several kinds."""

    vocab_size: Vocabulary = Field(description="rows of the embedding table, including the checkpoint's padding")
    hidden_size: HiddenSize = Field(description="width of the residual stream")
    norm: Norm = Field(description="the norm of every layer and before the head, unless set there")
    placement: Placement = Field(
        default="pre",
        description="where the norms of a block f (attention or MLP) stand: `pre`, x + f(norm(x)); `post`, x + "
        "norm(f(x)); `sandwich`, x + norm(f(norm(x))); `sandwich_mlp`, the same of the MLP alone; `pre_mlp`, "
        "no norm before attention; `add`, norm(x + f(x)); `from_norm`, norm(x) + f(norm(x)); `parallel`, x + "
        "attention(norm(x)) + mlp(norm(x)); `parallel_two_norms`, the same with a norm for each",
    )
    residual_multiplier: PositiveFloat = Field(default=1.0, description="factor of each block's output (Granite)")
    layer_scalar: Flag = Field(default=False, description="multiply each layer's output by a learned scalar (Gemma 4)")
    kinds: Annotated[dict[KindName, LayerKind], Field(min_length=1, max_length=sizes.MAX_KINDS)] = Field(
        description="layer kinds; layers of one kind differ only in their weights"
    )
    layers: Annotated[list[KindName | Repeat], Field(min_length=1, max_length=sizes.MAX_LAYERS)] = Field(
        description="the kind of each layer, in order; `{repeat: N, of: [kinds]}` repeats a pattern"
    )

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each layer, in order."""
        return tuple(expand_layers(self.layers))

    @property
    def final_norm(self) -> RMSNorm | LayerNorm | None:
        """The norm behind the last layer."""
        return self.norm

    def norm_of(self, kind: str) -> RMSNorm | LayerNorm:
        return self.kinds[kind].norm or self.norm

    def placement_of(self, kind: str) -> Placement:
        return self.kinds[kind].placement or self.placement


class Model(Stack):
    """The architecture."""

    embedding: Embedding = Field(default=Embedding(), description="the token table")
    altup: AltUp | None = Field(default=None, description="several streams between layers (Gemma 3n)")
    laurel_rank: HiddenSize | None = Field(
        default=None,
        description="width of a second branch beside attention, x + norm(right(left(x))); their sum with the stream is "
        "divided by sqrt(2) (Gemma 3n)",
    )
    head: Head = Field(description="from the last hidden state to logits")

    @property
    def final_norm(self) -> RMSNorm | LayerNorm | None:
        said = self.head.norm
        return self.norm if said == "model" else None if said == "none" else said

    @property
    def streams(self) -> int:
        """How many streams go from layer to layer."""
        return 1 if self.altup is None else self.altup.num_inputs

    @property
    def embedding_scale(self) -> float:
        scale = self.embedding.scale
        if not isinstance(scale, str):
            return float(scale)
        root = math.sqrt(self.hidden_size)
        return root if scale == "sqrt_hidden_size" else _in_bfloat16(root)


def _in_bfloat16(x: float) -> float:
    """A number as bfloat16 has it, eight bits in all."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256), exponent - 8)
