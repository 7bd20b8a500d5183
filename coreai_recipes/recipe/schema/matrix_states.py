"""Recurrences in the place of attention in which each head has a matrix, that keys write to and queries read."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from coreai_recipes.recipe.schema.attention import WithoutAttention
from coreai_recipes.recipe.schema.fields import Flag, HeadDim, Heads, HiddenSize, PositiveFloat, Taps
from coreai_recipes.recipe.schema.multipliers import StateSpaceMultipliers


class GatedDelta(WithoutAttention):
    """Linear attention by the gated delta rule (Qwen3.5, Qwen3-Next, OLMo-Hybrid, Kimi Linear): each value head has a
    matrix that all earlier positions have left, which a query reads and a key corrects.

    Queries, keys and values pass a causal convolution first, and queries and keys have unit length. What a head gives
    is normed and times a gate of the hidden state.
    """

    kind: Literal["gated_delta"]
    num_key_heads: Heads = Field(description="heads of queries and keys (linear_num_key_heads)")
    num_value_heads: Heads = Field(
        description="heads of values (linear_num_value_heads): a multiple of num_key_heads, neighbours share a key head"
    )
    key_dim: HeadDim = Field(description="dimensions of a query and of a key (linear_key_head_dim)")
    value_dim: HeadDim = Field(description="dimensions of a value (linear_value_head_dim)")
    taps: Taps = Field(description="positions that the convolution sees, including its own (linear_conv_kernel_dim)")
    negative: Flag = Field(
        default=False,
        description="correct up to twice, so that a matrix may have negative eigenvalues (linear_allow_neg_eigval)",
    )
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = Field(
        default="silu", description="activation behind the convolution (hidden_act)"
    )
    gate: Literal["silu", "sigmoid"] = Field(default="silu", description="activation of the gate")
    gate_rank: HiddenSize | None = Field(
        default=None, description="width of a vector of which the gate is made; without it, the hidden state is used"
    )
    decay: Literal["head", "channel"] = Field(
        default="head",
        description="what fades by a factor of its own: `head`, each value head's matrix; `channel`, each key "
        "dimension of it (Kimi Linear), where value heads are as many as key heads",
    )
    decay_rank: HiddenSize | None = Field(
        default=None, description="width of a vector of which these factors are made, as gate_rank of the gate"
    )
    eps: PositiveFloat | None = Field(
        default=None, description="of the norm of what a head gives; defaults to the model's. OLMo-Hybrid has 1.0e-5"
    )

    @property
    def num_kv_heads(self) -> int:
        return self.num_key_heads

    @property
    def fades_by_column(self) -> bool:
        """Whether each column of a matrix (values, keys) has a factor of its own."""
        return self.decay == "channel"


class Mamba2(WithoutAttention):
    """A state space in the place of attention (Mamba-2: Granite 4, Bamba): each head has a matrix that all earlier
    positions have left, which fades by a factor of each token; a key adds to it and a query reads it.

    Keys, queries and values are B, C and x of the paper. They pass a causal convolution first. What heads give is times
    a gate of the hidden state, and normed as `norm` says.
    """

    kind: Literal["mamba2"]
    num_key_heads: Heads = Field(description="groups of heads, which share keys and queries (mamba_n_groups)")
    num_value_heads: Heads = Field(
        description="heads (mamba_n_heads): a multiple of num_key_heads, neighbours share keys and queries"
    )
    key_dim: HeadDim = Field(description="dimensions of a query and of a key (mamba_d_state)")
    value_dim: HeadDim = Field(description="dimensions of a value (mamba_d_head)")
    taps: Taps = Field(description="positions that the convolution sees, including its own (mamba_d_conv)")
    conv_bias: Flag = Field(default=True, description="add a bias to the convolution (mamba_conv_bias)")
    bias: Flag = Field(default=False, description="add biases to the projections (mamba_proj_bias)")
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = Field(
        default="silu", description="activation behind the convolution (hidden_act)"
    )
    norm: Literal["behind_gate", "before_gate", "none"] = Field(
        default="behind_gate",
        description="whether what heads give is normed when the gate is multiplied in, before, or not at all "
        "(mamba_rms_norm, mamba_norm_before_gate); Falcon-H1 has any",
    )
    eps: PositiveFloat | None = Field(
        default=None, description="of the norm of what heads give; defaults to the model's"
    )
    multipliers: StateSpaceMultipliers = Field(
        default=StateSpaceMultipliers(), description="factors of what passes it (Falcon-H1)"
    )
    step_min: Annotated[float, Field(ge=1e-4, le=1, strict=True, allow_inf_nan=False)] | None = Field(
        default=None, description="the least step of a token (time_step_min); Nemotron-H uses 0.001"
    )
    fades_by_column: ClassVar[bool] = False

    @property
    def num_kv_heads(self) -> int:
        return self.num_key_heads


class Lightning(WithoutAttention):
    """Linear attention whose heads forget at fixed rates (lightning attention: MiniMax): each has a matrix to which a
    key adds and which a query reads, and which fades by the same factor at every token.

    Queries, keys and values pass an activation. What all heads give is normed together, and times sigmoid(gate(x)).
    """

    kind: Literal["lightning"]
    num_value_heads: Heads = Field(description="heads (num_attention_heads), each with queries and keys of its own")
    value_dim: HeadDim = Field(description="dimensions of a query, of a key and of a value (head_dim)")
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = Field(
        default="silu", description="activation of queries, keys and values (hidden_act)"
    )
    eps: PositiveFloat | None = Field(
        default=None, description="of the norm of what heads give; defaults to the model's. MiniMax has 1.0e-6"
    )
    fades_by_column: ClassVar[bool] = False

    @property
    def num_key_heads(self) -> int:
        return self.num_value_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_value_heads

    @property
    def key_dim(self) -> int:
        return self.value_dim


Recurrence = GatedDelta | Lightning | Mamba2  # heads with a matrix each, by groups that share keys
