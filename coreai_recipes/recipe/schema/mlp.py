"""What follows attention: an MLP, a mixture of experts in its place or beside it."""

from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.recipe.kinds import Open
from coreai_recipes.recipe.schema.attention import Norm
from coreai_recipes.recipe.schema.fields import (
    ExpertCount,
    Flag,
    HiddenSize,
    IntermediateSize,
    PositiveFloat,
    Spec,
)
from coreai_recipes.recipe.schema.multipliers import MLPMultipliers

Sparsity = Annotated[float, Field(gt=0, lt=1, strict=True, allow_inf_nan=False)]
Activation = Annotated[Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"], Open("activation")]


class GatedMLP(Spec):
    """down(activation(gate(x)) * up(x))."""

    kind: Literal["gated"]
    activation: Activation = Field(
        description="activation of the gate (hidden_act); gelu_pytorch_tanh is called gelu_tanh here"
    )
    intermediate_size: IntermediateSize = Field(description="width between the projections")
    bias: Flag = Field(default=False, description="add biases to the projections")
    inner_norm: Norm | None = Field(default=None, description="norm of what `down` reads (BitNet)")
    sparsity: Sparsity | None = Field(
        default=None,
        description="share of the gate's values that become zero, if they were normally distributed: the others count "
        "from mean + z * std of the token's on (activation_sparsity_pattern; Gemma 3n)",
    )
    multipliers: MLPMultipliers = Field(default=MLPMultipliers(), description="factors of what passes it (Falcon-H1)")


class PlainMLP(Spec):
    """down(activation(up(x))), without a gate (GPT-2, Phi, Nemotron)."""

    kind: Literal["plain"]
    activation: Activation | Literal["xielu"] = Field(
        description="activation between the projections (hidden_act); gelu_new is called gelu_tanh here, xielu has "
        "two learned scalars"
    )
    intermediate_size: IntermediateSize = Field(description="width between the projections")
    bias: Flag = Field(default=False, description="add biases to the projections")


class ExpertRouter(Spec):
    """Chooses a token's experts by scores of proj(x), and weighs each by its score."""

    score: Literal["softmax", "sigmoid", "sparsemixer"] = Field(
        description="turns logits into scores: softmax (Qwen, Mixtral), sigmoid (DeepSeek V3, dots1, GLM-4 MoE), or "
        "sparsemixer, for each of the best the softmax among those that are near it and not better (Phi-3.5-MoE)"
    )
    top: ExpertCount = Field(description="experts per token (num_experts_per_tok)")
    bias: Literal["none", "logits", "choice", "choice_of_logits"] = Field(
        default="none",
        description="where a bias is added: `logits`, to the router's output (gpt-oss); `choice`, to the scores that "
        "choose experts, but not to those that weigh them (e_score_correction_bias; DeepSeek V3); `choice_of_logits`, "
        "to logits that choose in place of scores (Kolibri 1)",
    )
    jitter: PositiveFloat | None = Field(
        default=None,
        description="sparsemixer's width (router_jitter_noise): near a logit b are those l with b - l <= 2 jitter "
        "max(b, |l|)",
    )
    softcap: PositiveFloat | None = Field(
        default=None, description="logits become softcap * tanh(logits / softcap) (Laguna)"
    )
    weighs: Literal["output", "input"] = Field(
        default="output", description="what of an expert is multiplied by its weight; Llama 4 weighs what it reads"
    )
    groups: ExpertCount = Field(
        default=1, description="groups of experts; a token's experts come from the best groups (n_group)"
    )
    top_groups: ExpertCount = Field(
        default=1, description="groups to choose from, by what `groups_by` says of their scores (topk_group)"
    )
    groups_by: Literal["two_best", "best"] = Field(
        default="two_best", description="a group's worth: the sum of its two best scores, or its best (DeepSeek V2)"
    )
    renorm: Flag = Field(default=False, description="normalize the weights of a token to sum to one (norm_topk_prob)")
    scale: PositiveFloat = Field(default=1.0, description="factor of the weights (routed_scaling_factor)")


class SharedExpert(Spec):
    """An MLP that every token passes through, beside the experts that it chooses, gated where they are."""

    intermediate_size: IntermediateSize = Field(description="width of one expert")
    count: ExpertCount = Field(default=1, description="number of experts, computed as one MLP (n_shared_experts)")
    gate: Flag = Field(default=False, description="multiply its output by sigmoid(gate(x)) (Qwen2 MoE)")
    scale: PositiveFloat = Field(default=1.0, description="factor of its output; Command A+ takes an average, 0.5")

    @property
    def width(self) -> int:
        return self.intermediate_size * self.count


class Clamp(Spec):
    """min(g, limit) * sigmoid(alpha * min(g, limit)) * (clip(u, -limit, limit) + 1) for gate g and up u (gpt-oss)."""

    limit: PositiveFloat = Field(description="limit to which gate and up are clamped (swiglu_limit); gpt-oss uses 7")
    alpha: PositiveFloat = Field(description="how steep the gate is (swiglu_alpha); gpt-oss uses 1.702")


class MixtureMLP(Spec):
    """A mixture of MLPs in place of one: each token passes through the few that its router chooses."""

    kind: Literal["moe"]
    num_experts: ExpertCount = Field(description="experts per layer (num_experts, num_local_experts)")
    gated: Flag = Field(
        default=True,
        description="each expert, and the shared one, is a gated MLP; else down(activation(up(x))) (Nemotron-H)",
    )
    activation: Activation = Field(
        description="activation of each expert's gate (hidden_act); of its `up` where it has no gate"
    )
    intermediate_size: IntermediateSize = Field(description="width of one expert (moe_intermediate_size)")
    latent_size: HiddenSize | None = Field(
        default=None,
        description="width of what experts read and give, by projections before and behind them; the router "
        "and the shared expert read the hidden state (moe_latent_size; Nemotron 3 Super)",
    )
    bias: Flag = Field(default=False, description="add biases to the experts' projections (gpt-oss)")
    output_bias: Flag = Field(default=False, description="add a bias to the sum of the experts' outputs (JetMoE)")
    clamp: Clamp | None = Field(default=None, description="a clamped gate instead of the activation (gpt-oss)")
    router: ExpertRouter = Field(description="how a token's experts are chosen and weighed")
    shared: SharedExpert | None = Field(default=None, description="an MLP beside the experts that takes every token")
    decode: Literal["gathered", "all"] = Field(
        default="gathered",
        description="in a call of one token, gather the weights of its experts, or compute all experts; calls of "
        "several tokens compute all",
    )


class NoMLP(Spec):
    """None: such a layer is attention, or what stands in its place, and nothing behind it (Mamba-2)."""

    kind: Literal["none"]


MLP = Annotated[GatedMLP | PlainMLP | MixtureMLP | NoMLP, Open("mlp")]


class Router(Spec):
    """Chooses a token's experts: the best `top` of softmax(proj(norm(x) * scale * hidden_size^-0.5)), which then sum to
    one, each times a learned scale of its expert (Gemma 4)."""

    kind: Literal["softmax"]
    top: ExpertCount = Field(description="experts per token (top_k_experts); Gemma 4 26B-A4B uses 8")


class Experts(Spec):
    """A mixture of experts beside the dense MLP, both on the same hidden state and each with norms of its own."""

    num_experts: ExpertCount = Field(description="experts per layer; Gemma 4 26B-A4B has 128")
    intermediate_size: IntermediateSize = Field(description="width of one expert (moe_intermediate_size)")
    activation: Literal["silu", "gelu_tanh"] = Field(description="activation of each expert's gate")
    router: Router = Field(description="how a token's experts are chosen")
    decode: Literal["gathered", "all"] = Field(
        default="gathered",
        description="in a call of one token, gather the weights of its experts, or compute all experts; calls of "
        "several tokens compute all",
    )
