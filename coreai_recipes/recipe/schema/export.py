"""How a package is written."""

from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.recipe import sizes
from coreai_recipes.recipe.engine_words import Chip, Reason, RuleId
from coreai_recipes.recipe.schema.fields import (
    Flag,
    One,
    Spec,
    Tokens,
)


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
