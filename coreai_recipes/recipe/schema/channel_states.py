"""Recurrences in the place of attention in which each channel has a state of its own."""

from typing import ClassVar, Literal

from pydantic import Field

from coreai_recipes.recipe.schema.attention import Norm, WithoutAttention
from coreai_recipes.recipe.schema.fields import Flag, HeadDim, Heads, HiddenSize, Taps
from coreai_recipes.recipe.schema.mlp import Activation


class Mamba1(WithoutAttention):
    """A selective state space in the place of attention (Mamba, Falcon Mamba, Jamba): each channel has a few numbers
    that all earlier positions have left, each of which fades by a factor of its own; a key adds to them and a query
    reads them.

    Keys and queries are B and C of the paper. They and the step that both depend on are made of the channels behind a
    causal convolution. What channels give is times a gate of the hidden state.
    """

    kind: Literal["mamba1"]
    channels: HiddenSize = Field(description="channels of the mixer (intermediate_size, or expand * hidden_size)")
    key_dim: HeadDim = Field(description="numbers of a channel's state (state_size, mamba_d_state)")
    step_rank: HiddenSize = Field(description="numbers that the channels' steps are made of (time_step_rank)")
    taps: Taps = Field(description="positions that the convolution sees, including its own (conv_kernel, mamba_d_conv)")
    conv_bias: Flag = Field(default=True, description="add a bias to the convolution (use_conv_bias, mamba_conv_bias)")
    bias: Flag = Field(default=False, description="add biases to the first and the last projection (use_bias)")
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = Field(
        default="silu", description="activation behind the convolution (hidden_act)"
    )
    selection_norm: Norm | None = Field(
        default=None, description="norm of keys, of queries and of what steps are made of (Falcon Mamba, Jamba)"
    )
    num_kv_heads: ClassVar[int] = 1


class RGLRU(WithoutAttention):
    """The recurrent block of Griffin in the place of attention (RecurrentGemma): each channel has one number, which
    fades by a factor of the channel and the token; what stands behind a causal convolution is added to it.

    What channels give is times activation(gate(x)).
    """

    kind: Literal["rg_lru"]
    channels: HiddenSize = Field(description="channels of the recurrence (lru_width)")
    blocks: Heads = Field(
        description="blocks of channels, each with gates of its own (num_attention_heads): channels are a multiple"
    )
    taps: Taps = Field(description="positions that the convolution sees, including its own (conv1d_width)")
    activation: Activation = Field(description="activation of the gate (hidden_activation)")
    num_kv_heads: ClassVar[int] = 1
