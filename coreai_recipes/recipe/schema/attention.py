"""Norms, and which positions a query sees."""

from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from coreai_recipes.recipe.kinds import Open
from coreai_recipes.recipe.schema.fields import (
    Flag,
    HeadDim,
    Heads,
    HiddenSize,
    KindName,
    Positions,
    Positive,
    PositiveFloat,
    Spec,
    Taps,
)
from coreai_recipes.recipe.schema.multipliers import AttentionMultipliers


class RMSNorm(Spec):
    """x / rms(x) * weight."""

    kind: Literal["rms"]
    eps: PositiveFloat = Field(description="added to the mean square (rms_norm_eps); Llama uses 1.0e-5")
    weight: Literal["w", "1+w", "none"] = Field(
        default="w", description="how the stored weight is applied; Gemma 2 and 3 use 1+w"
    )


class LayerNorm(Spec):
    """(x - mean) / std * weight + bias."""

    kind: Literal["layer"]
    eps: PositiveFloat = Field(description="added to the variance (layer_norm_eps)")
    weight: Literal["w", "1+w", "none"] = Field(default="w", description="how the stored weight is applied")
    bias: Flag = Field(default=True, description="add a bias")


Norm = Annotated[RMSNorm | LayerNorm, Open("norm")]


class QKNorm(Spec):
    """Norm of queries and keys. Fields that it leaves out are those of the model's norm."""

    over: Literal["head", "each_head", "width"] = Field(
        description="what is normalized: `head`, each head, with weights that all heads share; `each_head`, each "
        "head, with its own weights (StableLM, Cohere); `width`, the whole projection (OLMo 2)"
    )
    norm: Norm | None = Field(default=None, description="the norm, if it differs from the model's")
    after_rotary: Flag = Field(default=False, description="apply it after the rotary (Hunyuan)")


class Temperature(Spec):
    """Queries times 1 + beta * log(1 + floor((position + shift) / original_context)), which sharpens scores in longer
    texts."""

    beta: PositiveFloat = Field(description="how fast scores sharpen (llama_4_scaling_beta); Ministral 3 uses 0.1")
    original_context: Positive = Field(description="positions that are not scaled")
    shift: Annotated[int, Field(ge=0, le=1, strict=True)] = Field(
        default=0, description="number of the first position; Llama 4 counts from 1"
    )


class OutputGate(Spec):
    """What the heads give, times activation(output_gate(x)), x being what the layer's attention reads."""

    of: Literal["head", "width"] = Field(
        description="what has a gate of its own: `head`, each head; `width`, each dimension of each head (AFMoE)"
    )
    activation: Literal["sigmoid", "softplus"] = Field(
        default="sigmoid", description="activation of the gate; Laguna uses softplus"
    )


class Alibi(Spec):
    """Scores decrease with the distance of key and query, by one slope per head; it replaces a rotary.

    The slopes are 2^(-max i / n), i = 1 .. n, for n heads, n a power of two; of other numbers of heads those beyond the
    largest power of two below take every second slope of the series of 2n (BLOOM and MPT alike).
    """

    max: PositiveFloat = Field(default=8.0, description="the last slope is 2^-max (alibi_bias_max)")
    scaled: Flag = Field(default=False, description="scale the distance like the scores (Falcon)")
    rounding: Literal["none", "bfloat16"] = Field(
        default="none", description="precision of slopes, and of slopes times positions; Falcon uses bfloat16"
    )


class _Scored(Protocol):
    @property
    def head_dim(self) -> int: ...
    @property
    def scale(self) -> float | None: ...


class Scores:
    """What follows from the fields `head_dim` and `scale` of a kind that attends."""

    @property
    def score_scale(self: _Scored) -> float:
        """The factor of the scores."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def rotary_dim(self: _Scored) -> int:
        """The dimensions of a head that are given to its rotary."""
        return self.head_dim


class Attention(Scores, Spec):
    """What full and sliding attention have in common. Scores are scaled by `scale`, head_dim^-0.5 by default."""

    num_heads: Heads = Field(description="query heads (num_attention_heads)")
    num_kv_heads: Heads = Field(description="key and value heads (num_key_value_heads); num_heads is a multiple of it")
    head_dim: HeadDim = Field(description="dimensions of one head")
    value_dim: HeadDim | None = Field(
        default=None,
        description="dimensions of a value head (v_head_dim; MiMo V2 Flash); at most head_dim, the default",
    )
    value_scale: PositiveFloat = Field(
        default=1.0, description="factor of the values (attention_value_scale; MiMo V2 Flash)"
    )
    bias: Literal["none", "qkv", "qkvo", "o"] = Field(
        default="none", description="projections with a bias; Qwen2 uses qkv, GPT-Neo o"
    )
    qk_norm: QKNorm | None = Field(default=None, description="norm of queries and keys; Qwen3 has {over: head}")
    v_norm: Flag = Field(default=False, description="RMS norm of each value head, without a weight (Gemma 4)")
    k_eq_v: Flag = Field(
        default=False,
        description="values are k_proj's output before its norm and rotary; there is no v_proj (Gemma 4's 26B and 31B)",
    )
    scale: PositiveFloat | None = Field(default=None, description="factor of the scores; defaults to head_dim^-0.5")
    softcap: PositiveFloat | None = Field(
        default=None, description="scores become softcap * tanh(scores / softcap) (Gemma 2)"
    )
    clip: PositiveFloat | None = Field(
        default=None,
        description="clamp queries, keys and values to this magnitude before the rotary (clip_qkv; OLMo, MPT)",
    )
    temperature: Temperature | None = Field(default=None, description="scale queries with their position (Ministral 3)")
    alibi: Alibi | None = Field(default=None, description="scores that decrease with distance (BLOOM, MPT)")
    sinks: Flag = Field(
        default=False, description="add a learned logit per head to the softmax, and drop its weight (gpt-oss)"
    )
    output_gate: OutputGate | None = Field(
        default=None, description="gate what the heads give before the last projection (AFMoE)"
    )
    out_norm: Norm | None = Field(
        default=None, description="norm of what all heads give, before the last projection (BitNet)"
    )
    multipliers: AttentionMultipliers = Field(
        default=AttentionMultipliers(), description="factors of what passes it (Falcon-H1)"
    )
    shares_kv_with: KindName | None = Field(
        default=None,
        description="read the cache of the last layer of this kind instead of computing keys and values (Gemma 4)",
    )


class FullAttention(Attention):
    """A query sees every earlier position."""

    kind: Literal["full"]


class SlidingAttention(Attention):
    """Query i sees keys j with 0 <= i - j < window."""

    kind: Literal["sliding"]
    window: Positions = Field(description="positions that a query sees, including its own (sliding_window)")


class ChunkedAttention(Attention):
    """Query i sees keys j <= i of its own chunk: i // chunk = j // chunk (Llama 4)."""

    kind: Literal["chunked"]
    chunk: Positions = Field(description="positions of a chunk (attention_chunk_size); Llama 4 uses 8192")


class WithoutOptions(Spec):
    """What a kind never has that takes no option of full and sliding attention."""

    qk_norm: ClassVar[QKNorm | None] = None
    v_norm: ClassVar[bool] = False
    k_eq_v: ClassVar[bool] = False
    value_scale: ClassVar[float] = 1.0
    softcap: ClassVar[float | None] = None
    sinks: ClassVar[bool] = False
    clip: ClassVar[float | None] = None
    temperature: ClassVar[Temperature | None] = None
    alibi: ClassVar[Alibi | None] = None
    output_gate: ClassVar[OutputGate | None] = None
    out_norm: ClassVar[Norm | None] = None
    shares_kv_with: ClassVar[str | None] = None


class DifferentialAttention(Scores, WithoutOptions):
    """A query sees every earlier position, by the difference of two softmaxes (DiffLlama): of each pair of heads, one
    of the first half of all and its fellow in the second half, the weights of the first less lambda times those of the
    second mix the values of both, side by side.

    What a pair gives is normed and times 1 - initial, where initial = 0.8 - 0.6 exp(-0.3 i) in layer i and lambda =
    exp(q1 k1) - exp(q2 k2) + initial, of four vectors of the layer.
    """

    kind: Literal["differential"]
    num_heads: Heads = Field(description="query heads (num_attention_heads)")
    num_kv_heads: Heads = Field(
        description="key and value heads (num_key_value_heads), an even number; num_heads is a multiple of it"
    )
    head_dim: HeadDim = Field(description="dimensions of one head")
    bias: Literal["none", "qkvo"] = Field(default="none", description="add biases to the projections (attention_bias)")
    scale: PositiveFloat | None = Field(default=None, description="factor of the scores; defaults to head_dim^-0.5")


class LatentAttention(Scores, WithoutOptions):
    """A query sees every earlier position; one short vector holds the keys and values of all heads (DeepSeek V2, V3).

    A head is `nope_dim` dimensions that pass and, behind them, `rope_dim` that turn, which in keys all heads share.
    Where the rotary is scaled by yarn, scores are scaled by the square of its magnitude for mscale_all_dim too.
    """

    kind: Literal["latent"]
    num_heads: Heads = Field(description="query heads (num_attention_heads)")
    num_kv_heads: Heads = Field(description="the same number: each head has its own keys (num_key_value_heads)")
    nope_dim: HeadDim = Field(description="dimensions per head without a position (qk_nope_head_dim)")
    rope_dim: HeadDim = Field(description="rotated dimensions per head (qk_rope_head_dim)")
    value_dim: HeadDim = Field(description="dimensions of a value head (v_head_dim)")
    q_rank: HiddenSize | None = Field(
        default=None,
        description="width of the latent vector of queries (q_lora_rank); without it, the hidden state is used",
    )
    kv_rank: HiddenSize = Field(description="width of the latent vector of keys and values (kv_lora_rank)")
    latent_norm: Norm = Field(
        default=RMSNorm(kind="rms", eps=1e-6),
        description="the norm of both latent vectors; transformers always uses this one",
    )
    bias: Literal["none", "qkvo"] = Field(
        default="none", description="add a bias to o and to the projections of the hidden state (attention_bias)"
    )
    scale: PositiveFloat | None = Field(
        default=None, description="factor of the scores; defaults to (nope_dim + rope_dim)^-0.5"
    )
    index_topk: Positions | None = Field(
        default=None,
        description="keys that an indexer chooses (index_topk; DeepSeek V3.2): up to so many positions it chooses all, "
        "and the context cannot be longer",
    )

    @property
    def head_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @property
    def rotary_dim(self) -> int:
        """The dimensions of a head that are given to its rotary."""
        return self.rope_dim


class WithoutAttention(WithoutOptions):
    """What stands in attention's place: nothing attends and nothing turns."""

    num_heads: ClassVar[int] = 1
    head_dim: ClassVar[int] = 1
    rotary_dim: ClassVar[int] = 0
    score_scale: ClassVar[float] = 1.0


class ShortConvolution(WithoutAttention):
    """No attention, but a causal convolution over a few positions: o(c * conv(b * x)), where b, c and x are thirds of a
    projection of the hidden state and each channel has taps of its own (LFM2).

    What it hands from call to call is b * x of the last positions.
    """

    kind: Literal["short_conv"]
    channels: HiddenSize = Field(description="channels of the convolution: hidden_size")
    taps: Taps = Field(
        description="positions that an output sees, including its own (conv_L_cache); LFM2 uses 3, LFM3 7"
    )
    bias: Flag = Field(default=False, description="add biases to the convolution and to both projections (conv_bias)")
    num_kv_heads: ClassVar[int] = 1


class NoAttention(WithoutAttention):
    """None: such a layer is an MLP, or experts in its place, and nothing before it (Nemotron-H)."""

    kind: Literal["none"]
    num_kv_heads: ClassVar[int] = 1
