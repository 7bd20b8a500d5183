"""What a recipe can say: frozen pydantic models, discriminated by `kind`, with every number explicit.

The JSON Schema of editors is generated from these classes, and `rules.py` holds what relates one field to another.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from coreai_recipes.recipe import rules, sizes
from coreai_recipes.recipe.engine_words import Chip, Reason, RuleId
from coreai_recipes.recipe.kinds import Open, note_model
from coreai_recipes.recipe.layer_order import expand_layers

# Strict everywhere: pydantic would else take "64" for 64, "yes" for true and true for 1.0.
# How large a size may be stands in `sizes`, and a number must be one that float32 holds, and its reciprocal too.
Positive = Annotated[int, Field(gt=0, le=2**31 - 1, strict=True)]
Vocabulary = Annotated[int, Field(gt=0, le=sizes.MAX_VOCABULARY, strict=True)]
HiddenSize = Annotated[int, Field(gt=0, le=sizes.MAX_HIDDEN_SIZE, strict=True)]
IntermediateSize = Annotated[int, Field(gt=0, le=sizes.MAX_INTERMEDIATE_SIZE, strict=True)]
Heads = Annotated[int, Field(gt=0, le=sizes.MAX_HEADS, strict=True)]
HeadDim = Annotated[int, Field(gt=0, le=sizes.MAX_HEAD_DIM, strict=True)]
ExpertCount = Annotated[int, Field(gt=0, le=sizes.MAX_EXPERTS, strict=True)]
PerLayerSize = Annotated[int, Field(gt=0, le=sizes.MAX_PER_LAYER, strict=True)]
Positions = Annotated[int, Field(gt=0, le=sizes.MAX_CONTEXT, strict=True)]
Tokens = Annotated[int, Field(ge=2, le=sizes.MAX_TOKENS, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, ge=1e-30, le=1e30, strict=True, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=1, le=1e6, strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Precision = Literal["float32", "float16", "bfloat16"]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="letters, digits, `.`, `_` and `-`, at most 100"),
]
KindName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$", description="a letter, then letters, digits and `_`, at most 64"),
]


def _refuse_flag(value: Any) -> Any:
    """`true` equals 1 in Python, and so in a Literal."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_one", "a boolean is not 1")
    return value


One = Annotated[Literal[1], BeforeValidator(_refuse_flag)]


class Spec(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        note_model(cls)


# --- rotary ---------------------------------------------------------------------------------------------------------


class LinearScaling(Spec):
    """Every frequency divided by `factor`."""

    kind: Literal["linear"]
    factor: Factor = Field(description="by how much the context is stretched; Llama 3.2 uses 32")


class Llama3Scaling(Spec):
    """Llama 3.1's: low frequencies divided by `factor`, high ones kept, a smooth passage between."""

    kind: Literal["llama3"]
    factor: Factor = Field(description="by how much the context is stretched; Llama 3.2 uses 32")
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
    factor: Factor = Field(description="by how much the context is stretched, were it longer than the trained one")
    original_context: Positive = Field(
        description="the context the model was trained with (max_position_embeddings); export.context may not exceed it"
    )


class NTKScaling(Spec):
    """theta times alpha^(R / (R - 2)), whatever the length: HunYuan, where it is called `dynamic` with an `alpha`."""

    kind: Literal["ntk"]
    alpha: Factor = Field(description="by how much theta is stretched; HunYuan uses 1000")


class YarnScaling(Spec):
    """Pairs that turn more than beta_fast times in the original context are kept, those that turn less than beta_slow
    times divided by `factor`, a ramp between; cos and sin are multiplied by an attention factor."""

    kind: Literal["yarn"]
    factor: Factor = Field(description="by how much the context is stretched; gpt-oss uses 32, DeepSeek V3 40")
    original_context: Positive = Field(description="the context the model was trained with before scaling")
    beta_fast: PositiveFloat = Field(default=32.0, description="turns above which a pair is kept")
    beta_slow: PositiveFloat = Field(default=1.0, description="turns below which a pair is divided")
    truncate: Flag = Field(
        default=True, description="whether the ramp begins and ends at whole pairs; not so in gpt-oss"
    )
    attention_factor: PositiveFloat | None = Field(
        default=None, description="factor of cos and sin; made of factor and the mscales if unsaid"
    )
    mscale: PositiveFloat | None = Field(default=None, description="above the line of the attention factor (DeepSeek)")
    mscale_all_dim: PositiveFloat | None = Field(
        default=None, description="below the line of the attention factor (DeepSeek)"
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
        description="by how much the context is stretched: max_position_embeddings / original_context; Phi-3 uses 32"
    )
    original_context: Annotated[int, Field(ge=2, le=2**31 - 1, strict=True)] = Field(
        description="the longest context for which the short factors serve; Phi-3 uses 4096"
    )
    short_factor: Annotated[list[PositiveFloat], Field(min_length=1, max_length=4096)] = Field(
        description="what divides each pair's frequency within the original context"
    )
    long_factor: Annotated[list[PositiveFloat], Field(min_length=1, max_length=4096)] = Field(
        description="what divides each pair's frequency when the context is longer"
    )
    attention_factor: PositiveFloat | None = Field(
        default=None, description="factor of cos and sin; sqrt(1 + ln(factor) / ln(original_context)) if unsaid"
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
    """What all rotaries that turn anything have in common."""

    theta: PositiveFloat = Field(description="base of the geometric series of frequencies (rope_theta)")
    pairing: Literal["half", "interleaved"] = Field(
        default="half", description="`half` pairs (i, i + R/2), `interleaved` pairs (2i, 2i + 1)"
    )
    scaling: Scaling | None = Field(
        default=None, description="how frequencies are stretched beyond the trained context"
    )
    precision: Precision = Field(default="float32", description="precision of angles, cos and sin")
    lossy: Flag = Field(default=False, description="must be true to allow a precision below float32")
    product: Literal["model", "float32", "float32_rounded_angles"] = Field(
        default="model", description="the dtype in which half-precision activations are rotated; families differ"
    )


class FullRotary(TurningRotary):
    """All of the head turns: Llama, Qwen, Mistral, Gemma's sliding layers."""

    kind: Literal["full"]


class PartialRotary(TurningRotary):
    """The first int(factor * head_dim) dimensions turn, paired among themselves: Phi, GPT-NeoX, StableLM, GLM."""

    kind: Literal["partial"]
    factor: Share = Field(description="the share of the head that rotates; GPT-NeoX uses 0.25, Phi-2 0.4")


class ProportionalRotary(TurningRotary):
    """Pairs span the whole head, (i, i + head_dim/2); only the first factor * head_dim/2 of them turn: Gemma 4."""

    kind: Literal["proportional"]
    factor: Share = Field(description="the share of the head that rotates; Gemma 4 uses 0.25")
    pairing: Literal["half"] = Field(default="half", description="pairs (i, i + head_dim/2)")
    scaling: Annotated[LinearScaling, Field()] | None = Field(
        default=None, description="how frequencies are stretched beyond the trained context"
    )


class NoRotary(Spec):
    """Layers without positions: SmolLM3's every fourth, Cohere 2's full ones."""

    kind: Literal["none"]


Rotary = Annotated[FullRotary | PartialRotary | ProportionalRotary | NoRotary, Open("rotary")]


# --- norms, attention, mlp ------------------------------------------------------------------------------------------


class RMSNorm(Spec):
    """x / rms(x) * weight."""

    kind: Literal["rms"]
    eps: PositiveFloat = Field(description="added to the mean square (rms_norm_eps); Llama uses 1.0e-5")
    weight: Literal["w", "1+w", "none"] = Field(
        default="w", description="how the stored weight enters; Gemma 2 and 3 use 1+w"
    )


class LayerNorm(Spec):
    """(x - mean) / std * weight + bias."""

    kind: Literal["layer"]
    eps: PositiveFloat = Field(description="added to the variance (layer_norm_eps)")
    weight: Literal["w", "1+w", "none"] = Field(default="w", description="how the stored weight enters")
    bias: Flag = Field(default=True, description="whether a bias is added")


Norm = Annotated[RMSNorm | LayerNorm, Open("norm")]


class QKNorm(Spec):
    """Norm of queries and keys; what it does not say it takes from the model's norm."""

    over: Literal["head", "each_head", "width"] = Field(
        description="`head`: over each head's dimensions, with weights that all heads share; `each_head`: with weights "
        "of each head's own (StableLM, Cohere); `width`: over the whole projection (OLMo 2)"
    )
    norm: Norm | None = Field(default=None, description="the norm, when it is not the model's")
    after_rotary: Flag = Field(default=False, description="whether it comes behind the rotary (Hunyuan)")


class Temperature(Spec):
    """Queries times 1 + beta * log(1 + floor(position / original_context)): longer texts get sharper scores."""

    beta: PositiveFloat = Field(description="how fast scores sharpen (llama_4_scaling_beta); Ministral 3 uses 0.1")
    original_context: Positive = Field(description="positions that are left as they are")


class Alibi(Spec):
    """Scores fall with the distance of key and query, by a slope of each head's own; it stands in for a rotary.

    The slopes are 2^(-max i / n), i = 1 .. n, for n heads, n a power of two; of other numbers of heads those beyond the
    largest power of two below take every second slope of the series of 2n (BLOOM and MPT alike).
    """

    max: PositiveFloat = Field(default=8.0, description="the last slope is 2^-max (alibi_bias_max)")
    scaled: Flag = Field(default=False, description="the distance is scaled as the scores are (Falcon)")
    rounding: Literal["none", "bfloat16"] = Field(
        default="none", description="of slopes, and of slopes times positions; Falcon takes them in bfloat16"
    )


class Attention(Spec):
    """What full and sliding attention have in common. Scores are scaled by `scale`, head_dim^-0.5 if unsaid."""

    num_heads: Heads = Field(description="query heads (num_attention_heads)")
    num_kv_heads: Heads = Field(description="key and value heads (num_key_value_heads); num_heads is a multiple of it")
    head_dim: HeadDim = Field(description="dimensions of one head")
    bias: Literal["none", "qkv", "qkvo"] = Field(
        default="none", description="which projections carry a bias; Qwen2 has qkv"
    )
    qk_norm: QKNorm | None = Field(default=None, description="norm of queries and keys; Qwen3 has {over: head}")
    v_norm: Flag = Field(default=False, description="RMS norm of each value head, without a weight (Gemma 4)")
    k_eq_v: Flag = Field(
        default=False,
        description="values are k_proj's output before its norm and rotary; there is no v_proj (Gemma 4's 26B and 31B)",
    )
    scale: PositiveFloat | None = Field(default=None, description="factor of the scores; head_dim^-0.5 if unsaid")
    softcap: PositiveFloat | None = Field(
        default=None, description="scores become softcap * tanh(scores / softcap) (Gemma 2)"
    )
    clip: PositiveFloat | None = Field(
        default=None,
        description="queries, keys and values are cut off at this magnitude before they turn (clip_qkv; OLMo, MPT)",
    )
    temperature: Temperature | None = Field(default=None, description="queries grow with their position (Ministral 3)")
    alibi: Alibi | None = Field(default=None, description="scores fall with distance (BLOOM, MPT)")
    sinks: Flag = Field(
        default=False, description="a learned logit of each head joins the softmax, and its weight is dropped (gpt-oss)"
    )
    shares_kv_with: KindName | None = Field(
        default=None, description="read the cache of the last layer of that kind; own no k and v (Gemma 4)"
    )

    @property
    def score_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def rotary_dim(self) -> int:
        """The dimensions of a head that are given to its rotary."""
        return self.head_dim


class FullAttention(Attention):
    """Every earlier position is seen."""

    kind: Literal["full"]


class SlidingAttention(Attention):
    """Query i sees keys j with 0 <= i - j < window."""

    kind: Literal["sliding"]
    window: Positions = Field(description="how many positions a query sees, itself among them (sliding_window)")


class LatentAttention(Spec):
    """Every earlier position is seen; keys and values of all heads are made of one short row (DeepSeek V2 and V3).

    A head is `nope_dim` dimensions that pass and, behind them, `rope_dim` that turn, which in keys all heads share.
    Where the rotary is scaled by yarn, scores are scaled by the square of its magnitude for mscale_all_dim too.
    """

    kind: Literal["latent"]
    num_heads: Heads = Field(description="query heads (num_attention_heads)")
    num_kv_heads: Heads = Field(description="as many: each head has keys of its own (num_key_value_heads)")
    nope_dim: HeadDim = Field(description="dimensions of a head that have no position (qk_nope_head_dim)")
    rope_dim: HeadDim = Field(description="dimensions of a head that turn (qk_rope_head_dim)")
    value_dim: HeadDim = Field(description="dimensions of a head's values (v_head_dim)")
    q_rank: HiddenSize | None = Field(
        default=None, description="width of the row that queries are made of (q_lora_rank); unsaid, the hidden state"
    )
    kv_rank: HiddenSize = Field(description="width of the row that keys and values are made of (kv_lora_rank)")
    latent_norm: Norm = Field(
        default=RMSNorm(kind="rms", eps=1e-6), description="the norm of both rows; in transformers always this one"
    )
    bias: Literal["none", "qkvo"] = Field(
        default="none", description="whether what reads the hidden state, and o, carry a bias (attention_bias)"
    )
    scale: PositiveFloat | None = Field(
        default=None, description="factor of the scores; (nope_dim + rope_dim)^-0.5 if unsaid"
    )

    # what this attention never has
    qk_norm: ClassVar[QKNorm | None] = None
    v_norm: ClassVar[bool] = False
    k_eq_v: ClassVar[bool] = False
    softcap: ClassVar[float | None] = None
    sinks: ClassVar[bool] = False
    clip: ClassVar[float | None] = None
    temperature: ClassVar[Temperature | None] = None
    alibi: ClassVar[Alibi | None] = None
    shares_kv_with: ClassVar[str | None] = None

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def rotary_dim(self) -> int:
        """The dimensions of a head that are given to its rotary."""
        return self.rope_dim

    @property
    def score_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale


AttentionKind = Annotated[FullAttention | SlidingAttention | LatentAttention, Open("attention")]


Activation = Annotated[Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"], Open("activation")]


class GatedMLP(Spec):
    """down(activation(gate(x)) * up(x))."""

    kind: Literal["gated"]
    activation: Activation = Field(description="of the gate (hidden_act); gelu_pytorch_tanh is gelu_tanh here")
    intermediate_size: IntermediateSize = Field(description="width between the projections")
    bias: Flag = Field(default=False, description="whether the projections carry a bias")


class PlainMLP(Spec):
    """down(activation(up(x))): no gate (GPT-2, Phi, Nemotron)."""

    kind: Literal["plain"]
    activation: Activation | Literal["xielu"] = Field(
        description="between the projections (hidden_act); gelu_new is gelu_tanh here, xielu has two learned scalars"
    )
    intermediate_size: IntermediateSize = Field(description="width between the projections")
    bias: Flag = Field(default=False, description="whether the projections carry a bias")


class ExpertRouter(Spec):
    """Chooses a token's experts by scores of proj(x), and weighs each by its score."""

    score: Literal["softmax", "sigmoid"] = Field(
        description="what makes scores of logits; softmax (Qwen, Mixtral) or sigmoid (DeepSeek V3, dots1, GLM-4 MoE)"
    )
    top: ExpertCount = Field(description="experts of each token (num_experts_per_tok)")
    bias: Literal["none", "logits", "choice"] = Field(
        default="none",
        description="`logits`: the projection's own (gpt-oss); `choice`: added to the scores by which experts are "
        "chosen, not to those by which they are weighed (e_score_correction_bias; DeepSeek V3)",
    )
    groups: ExpertCount = Field(
        default=1, description="into which experts are divided; experts are chosen from the best groups (n_group)"
    )
    top_groups: ExpertCount = Field(
        default=1, description="groups with the largest sums of their two best scores (topk_group)"
    )
    renorm: Flag = Field(default=False, description="whether the weights of a token sum to one (norm_topk_prob)")
    scale: PositiveFloat = Field(default=1.0, description="factor of the weights (routed_scaling_factor)")


class SharedExpert(Spec):
    """A gated MLP that every token passes through, beside the experts that it chooses."""

    intermediate_size: IntermediateSize = Field(description="width of one")
    count: ExpertCount = Field(default=1, description="how many lie side by side in one MLP (n_shared_experts)")
    gate: Flag = Field(default=False, description="whether its output is times sigmoid(gate(x)) (Qwen2 MoE)")

    @property
    def width(self) -> int:
        return self.intermediate_size * self.count


class Clamp(Spec):
    """min(g, limit) * sigmoid(alpha * min(g, limit)) * (clip(u, -limit, limit) + 1) for gate g and up u (gpt-oss)."""

    limit: PositiveFloat = Field(description="where gate and up are cut off (swiglu_limit); gpt-oss uses 7")
    alpha: PositiveFloat = Field(description="how steep the gate is (swiglu_alpha); gpt-oss uses 1.702")


class MixtureMLP(Spec):
    """A mixture of gated MLPs in place of one: each token passes through the few that its router chooses."""

    kind: Literal["moe"]
    num_experts: ExpertCount = Field(description="experts of each layer (num_experts, num_local_experts)")
    activation: Activation = Field(description="of each expert's gate (hidden_act)")
    intermediate_size: IntermediateSize = Field(description="width of one expert (moe_intermediate_size)")
    bias: Flag = Field(default=False, description="whether the experts' projections carry a bias (gpt-oss)")
    clamp: Clamp | None = Field(default=None, description="a clamped gate in place of the activation (gpt-oss)")
    router: ExpertRouter = Field(description="how a token's experts are chosen and weighed")
    shared: SharedExpert | None = Field(default=None, description="an MLP for every token beside the experts")
    decode: Literal["gathered", "all"] = Field(
        default="gathered",
        description="for one token, gather the weights of its experts, or compute all of them; several take all",
    )


MLP = Annotated[GatedMLP | PlainMLP | MixtureMLP, Open("mlp")]


class Router(Spec):
    """Chooses a token's experts: the best `top` of softmax(proj(norm(x) * scale * hidden_size^-0.5)), which then sum to
    one, each times a learned scale of its expert (Gemma 4)."""

    kind: Literal["softmax"]
    top: ExpertCount = Field(description="experts of each token (top_k_experts); Gemma 4 26B-A4B uses 8")


class Experts(Spec):
    """A mixture of experts beside the dense MLP, both on the same hidden state and each with norms of its own."""

    num_experts: ExpertCount = Field(description="experts of each layer; Gemma 4 26B-A4B has 128")
    intermediate_size: IntermediateSize = Field(description="width of one expert (moe_intermediate_size)")
    activation: Literal["silu", "gelu_tanh"] = Field(description="of each expert's gate")
    router: Router = Field(description="how a token's experts are chosen")
    decode: Literal["gathered", "all"] = Field(
        default="gathered",
        description="for one token, gather the weights of its experts, or compute all of them; several take all",
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


# --- the model ------------------------------------------------------------------------------------------------------


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


class Centroids(Spec):
    """An ordered-embedding head: only tokens of the best `top` of `count` equal clusters get a logit of their own."""

    count: Vocabulary = Field(description="clusters of the vocabulary (num_centroids)")
    top: Vocabulary = Field(description="clusters that are looked into (centroid_intermediate_top_k)")


class Functions(Spec):
    """The functions of the package and how many tokens each takes at a call."""

    prefill: Tokens = Field(default=64, description="tokens of a prompt taken at a call")
    decode: One = Field(default=1, description="one token at a call")
    score: Tokens | None = Field(
        default=None, description="tokens whose logits are all returned, for speculative decoding"
    )

    @property
    def queries(self) -> dict[str, int]:
        """Query length by function, `decode` first as the package's default."""
        sizes = {"decode": self.decode, "prefill": self.prefill}
        return sizes if self.score is None else {**sizes, "score": self.score}


class Export(Spec):
    """How the package is written."""

    format: Literal["coreml"] = Field(default="coreml", description="the kind of package: Core ML's .mlpackage")
    target: Literal["iOS18"] = Field(
        default="iOS18", description="the oldest system that runs the package: iOS 18, and so macOS 15"
    )
    compute_units: Literal["cpu_and_ne", "cpu_and_gpu", "cpu_only", "all"] = Field(
        default="cpu_and_ne", description="the units that `recipe` asks Core ML for; an app asks for its own"
    )
    precision: Literal["float16"] = Field(default="float16", description="precision of weights, states and results")
    context: Annotated[int, Field(ge=2, le=sizes.MAX_CONTEXT, strict=True)] = Field(
        description="positions a session can hold"
    )
    functions: Functions = Field(default=Functions(), description="tokens that each function takes at a call")
    states: Literal["packed", "per_kind"] = Field(
        default="packed",
        description="`packed`: the keys and values of all kinds of one geometry lie in one state, each layer's side by "
        "side; `per_kind`: two states for each kind",
    )
    attention_layout: Literal["auto", "channels", "last"] = Field(
        default="auto",
        description="where the keys of one query's scores lie: `last`, the axis that the engine pads to 64 bytes, or "
        "`channels`, which may be more than 16,384 on every chip; auto is `last` up to a context of 16,384",
    )
    outputs: Literal["logits", "ids"] = Field(
        default="logits",
        description="what a call gives of the next token: `logits`, or `ids`, the best token and its logit, for hosts "
        "that never sample",
    )
    mlp_layout: Literal["row", "8x8"] = Field(
        default="row",
        description="how the 64 tokens of a prefill lie in an MLP: in a row, or as 8 x 8, faster on M1 and A14",
    )
    norm: Literal["rms", "mirrored"] = Field(
        default="rms",
        description="how RMS norms are computed: in steps that cannot overflow, or as the layer norm of (x, -x), fewer "
        "operations, whose squares overflow float16 from 256 on where the engine is no wider within",
    )
    fold: Flag = Field(
        default=True,
        description="weights are permuted so that rotary pairs stand together: the same function, less of it turned",
    )
    device: Chip | None = Field(
        default=None,
        description="the chip that the package is for: an error by a rule of the engine that holds for it fails the "
        "build (`recipe lint --device`)",
    )
    allow: dict[RuleId, Reason] = Field(
        default={},
        description="errors by these rules that a build for the device lets pass, each with a reason that has a figure",
    )
    residual_scale: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] | Literal["auto"] = Field(
        default=1.0,
        description="a power of two by which the residual stream is scaled down, so that float16 and the engine hold "
        "it; auto: what a verified build measures",
    )
    mlp_scale: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] = Field(
        default=1.0,
        description="a power of two by which what a gated MLP multiplies is scaled down, its last matrix, or the norm "
        "behind it, undoing it, where float16 or the engine could not hold it: the same logits at no cost",
    )
    head_scale: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] = Field(
        default=1.0,
        description="a power of two by which what the norm before the head gives is scaled down, the logits undoing "
        "it, where float16 or the engine could not hold it",
    )

    @property
    def allowed(self) -> dict[str, str]:
        """The reasons for which errors are let pass, by rule."""
        return {str(rule): reason for rule, reason in self.allow.items()}

    @property
    def scale(self) -> float:
        """The residual scale as a number: `auto` is 1 until a build has measured it."""
        return 1.0 if self.residual_scale == "auto" else self.residual_scale

    @property
    def keys_last(self) -> bool:
        """Whether layers that run for one query have its keys on the last axis of their scores."""
        by_context = self.context <= sizes.MAX_LAST_AXIS
        return by_context if self.attention_layout == "auto" else self.attention_layout == "last"


class StoredFloat16(Spec):
    """Two bytes a weight."""

    kind: Literal["float16"]


class StoredInt8(Spec):
    """A byte a weight, and two for each channel: a scale."""

    kind: Literal["int8"]


class StoredPalette(Spec):
    """The number of one of 2^bits float16 values, which a group of channels shares: what the engine reads best."""

    kind: Literal["palettize"]
    bits: Literal[1, 2, 3, 4, 6, 8] = Field(description="of each weight's number")
    group: Annotated[int, Field(ge=1, le=sizes.MAX_GROUP, strict=True)] = Field(
        default=16,
        description="channels that share a palette; the next smaller number that divides them, where it does not",
    )


Stored = StoredFloat16 | StoredInt8 | StoredPalette


class Compress(Spec):
    """How weights are stored. Norms, biases and other vectors stay float16, and so do tables that a host reads."""

    default: Annotated[Stored, Field(discriminator="kind")] = Field(
        description="how every matrix is stored, the table among them"
    )


class Reference(Spec):
    """The transformers model that the recipe must equal."""

    model_type: Name = Field(description="its model_type in transformers")
    checkpoint: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="where the weights come from when the user names no other place"
    )


class Weights(Spec):
    """Which family's tensor names the checkpoint uses."""

    names: Name = Field(description="the family whose tensor names the checkpoint uses; llama, qwen3 ...")


class Draft(Stack):
    """A small model that drafts tokens for the target to accept or reject. Every layer reads the target's K and V.

    It is given the target's embedding of the last token beside the target's last hidden state, at the last token's
    position (Gemma 4's assistants).
    """

    reference: Reference = Field(description="the transformers model to equal, and its checkpoint")
    centroids: Centroids | None = Field(default=None, description="an ordered-embedding head (use_ordered_embeddings)")
    steps: Annotated[int, Field(ge=1, strict=True)] = Field(
        default=1,
        description="tokens that one call drafts; of more than 1 the package gives ids alone",
    )
    weights: Weights = Field(description="where the draft's checkpoint keeps its tensors")


class Recipe(Spec):
    """One language model, described as data."""

    VERSION: ClassVar[int] = 1

    recipe: One = Field(description="version of the recipe language")
    name: Name = Field(description="what the bundle's folder is called; letters, digits, `.`, `_` and `-`")
    reference: Reference | None = Field(description="the transformers model to equal; null when there is none")
    model: Model = Field(description="the architecture")
    draft: Draft | None = Field(default=None, description="a model that drafts for this one, built as function `draft`")
    weights: Weights = Field(description="where the checkpoint keeps its tensors")
    compress: Compress | None = Field(default=None, description="how weights are stored; float16 unless said otherwise")
    export: Export = Field(description="how the package is written")

    @property
    def rotary_choices(self) -> dict[str, str]:
        """By kind, what was fixed about a rotary that depends on the length of a text: a manifest states it."""
        return {
            name: (
                f"longrope: the {'long' if scaling.is_long(self.export.context) else 'short'} factors, "
                f"for context {self.export.context} and original context {scaling.original_context}"
            )
            for name, kind in self.model.kinds.items()
            if isinstance(scaling := getattr(kind.rotary, "scaling", None), LongRopeScaling)
        }

    @model_validator(mode="after")
    def _hold_the_rules(self) -> Self:
        problems = rules.find_problems(self.model_dump())
        if problems:
            summary = "; ".join(f"{'.'.join(map(str, p.location))}: {p.message}" for p in problems)
            context: dict[str, Any] = {"problems": problems, "summary": summary}
            raise PydanticCustomError("rules", "{summary}", context)
        return self
