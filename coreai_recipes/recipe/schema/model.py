"""A kind of layer, and how kinds are stacked."""

import math
from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.recipe import sizes
from coreai_recipes.recipe.layer_order import expand_layers
from coreai_recipes.recipe.schema.attention import (
    AttentionKind,
    LatentAttention,
    LayerNorm,
    Norm,
    RMSNorm,
)
from coreai_recipes.recipe.schema.fields import (
    Flag,
    HiddenSize,
    KindName,
    Positions,
    PositiveFloat,
    Spec,
    Vocabulary,
)
from coreai_recipes.recipe.schema.mlp import (
    MLP,
    Experts,
)
from coreai_recipes.recipe.schema.rotary import (
    Rotary,
    YarnScaling,
)

Placement = Literal["pre", "post", "sandwich", "parallel", "parallel_two_norms", "add"]


class LayerKind(Spec):
    """Layers of one kind differ in their weights only."""

    attention: AttentionKind = Field(description="which positions a query sees, and the heads")
    rotary: Rotary = Field(description="which dimensions of queries and keys rotate, and how fast")
    mlp: MLP = Field(description="the MLP, or the experts in its place")
    experts: Experts | None = Field(default=None, description="a mixture of experts beside the MLP (Gemma 4 26B-A4B)")
    norm: Norm | None = Field(default=None, description="the norms of this kind, when they are not the model's")
    placement: Placement | None = Field(
        default=None, description="where this kind's norms stand, when not where the model's do"
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

    size: Annotated[int, Field(gt=0, le=sizes.MAX_PER_LAYER, strict=True)] = Field(
        description="columns that each layer takes of a row"
    )
    vocab_size: Vocabulary = Field(description="rows of the second table")
    activation: Literal["silu", "gelu_tanh"] = Field(default="gelu_tanh", description="of the gate in each layer")


class LearnedPositions(Spec):
    """A row for each position, added to the token's (GPT-2, OPT)."""

    count: Positions = Field(description="positions that have a row; the context cannot be longer")
    offset: Annotated[int, Field(ge=0, le=1024, strict=True)] = Field(
        default=0, description="rows before that of position 0; OPT has 2"
    )


class Embedding(Spec):
    """The token table, and what is added to its rows or done with them before the first layer."""

    scale: PositiveFloat | Literal["sqrt_hidden_size"] = Field(
        default=1.0, description="factor of the embedding; Gemma uses sqrt_hidden_size"
    )
    per_layer: PerLayerEmbedding | None = Field(default=None, description="Gemma 4's second table")
    width: HiddenSize | None = Field(
        default=None,
        description="columns of the table when not hidden_size: a projection leads in, and out again before the head "
        "(OPT-350m)",
    )
    norm: Norm | None = Field(default=None, description="a norm of the first hidden state (BLOOM)")
    positions: LearnedPositions | None = Field(default=None, description="learned positions (GPT-2, OPT)")


class Head(Spec):
    """From the last hidden state to logits."""

    tied: Flag = Field(description="whether the head is the embedding's table (tie_word_embeddings)")
    bias: Flag = Field(default=False, description="whether logits have a bias (Phi)")
    scale: PositiveFloat = Field(
        default=1.0, description="factor of the logits (Cohere's logit_scale, 1 / Granite's logits_scaling)"
    )
    softcap: PositiveFloat | None = Field(default=None, description="logits become softcap * tanh(logits / softcap)")
    norm: Norm | Literal["model", "none"] = Field(
        default="model", description="the norm before the head, when it is not the model's; `none` where there is none"
    )


class Repeat(Spec):
    """A pattern of kinds, repeated."""

    repeat: Annotated[int, Field(ge=1, le=sizes.MAX_LAYERS, strict=True)] = Field(
        description="how often the pattern is stacked"
    )
    of: Annotated[list[KindName], Field(min_length=1, max_length=sizes.MAX_LAYERS)] = Field(
        description="kinds in the order of layers"
    )


class Stack(Spec):
    """Layers of several kinds, one on another: what a model and its draft have in common."""

    vocab_size: Vocabulary = Field(description="rows of the embedding table, with the padding that the checkpoint has")
    hidden_size: HiddenSize = Field(description="width of the residual stream")
    norm: Norm = Field(description="the norm of every layer and of the end, unless a kind has its own")
    placement: Placement = Field(
        default="pre",
        description="where the norms of a block f stand, attention and MLP; `pre`: x + f(norm(x)), `post`: "
        "x + norm(f(x)), `sandwich`: x + norm(f(norm(x))), `add`: norm(x + f(x)); `parallel`: "
        "x + attention(norm(x)) + mlp(norm(x)), and `parallel_two_norms` the same with a norm for each",
    )
    residual_multiplier: PositiveFloat = Field(
        default=1.0, description="factor of what each block adds to the residual stream (Granite)"
    )
    layer_scalar: Flag = Field(
        default=False, description="each layer's output is multiplied by a learned scalar (Gemma 4)"
    )
    kinds: Annotated[dict[KindName, LayerKind], Field(min_length=1, max_length=sizes.MAX_KINDS)] = Field(
        description="layers of one kind differ in their weights only"
    )
    layers: Annotated[list[KindName | Repeat], Field(min_length=1, max_length=sizes.MAX_LAYERS)] = Field(
        description="kinds from the first layer to the last; `{repeat: N, of: [kinds]}` stacks a pattern"
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
    head: Head = Field(description="from the last hidden state to logits")

    @property
    def final_norm(self) -> RMSNorm | LayerNorm | None:
        said = self.head.norm
        return self.norm if said == "model" else None if said == "none" else said

    @property
    def embedding_scale(self) -> float:
        scale = self.embedding.scale
        return math.sqrt(self.hidden_size) if scale == "sqrt_hidden_size" else float(scale)
