"""How a package is written: what every format has, and what each alone has."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from coreai_recipes.hosts import anemll, coreai_models, coreai_models_dynamic
from coreai_recipes.recipe import sizes
from coreai_recipes.recipe.engine_words import DeviceId, Reason, RuleId
from coreai_recipes.recipe.schema.adapters import LowRank
from coreai_recipes.recipe.schema.fields import (
    Flag,
    One,
    Spec,
    Tokens,
)

# A name stands here because it buys 3 dB or more in a family: tests/island_table.py measures in which.
Island = Literal["attention_norm"]
# How the dimensions of a head are ordered for its rotary: the pairs that turn first, or each half of them in a half of
# the head, which is the order of Core AI's composite operation.
RotaryFold = Literal["contiguous", "whole_head"]


class Functions(Spec):
    """The functions of the package, and the tokens per call of each."""

    prefill: Tokens = Field(default=64, description="prompt tokens per call")
    decode: One = Field(default=1, description="one token per call")
    score: Tokens | None = Field(
        default=None, description="tokens per call, each with its logits, for speculative decoding"
    )

    @property
    def queries(self) -> dict[str, int]:
        """Query length by function, `decode` first as the package's default."""
        sizes = {"decode": self.decode, "prefill": self.prefill}
        return sizes if self.score is None else {**sizes, "score": self.score}


class ChunkSizes(Spec):
    """How a model is cut into packages: by their number or by their size; `auto` where neither is said."""

    count: Annotated[int, Field(ge=1, le=sizes.MAX_CHUNKS, strict=True)] | None = Field(
        default=None, description="how many packages, the largest as small as it can be"
    )
    max_bytes: Annotated[int, Field(ge=1, le=sizes.MAX_CHUNK_BYTES, strict=True)] | None = Field(
        default=None, description="bytes of weights that a package holds at most; as few packages as that takes"
    )
    share: Literal["owner", "pass"] = Field(
        default="owner",
        description="layers that read the cache of another layer: in the package of its `owner`, or `pass`: anywhere "
        "behind it, given its keys and values as the owner's package returns them",
    )


class ExportOfAnyFormat(Spec):
    """What every format has."""

    precision: Literal["float16"] = Field(default="float16", description="precision of weights, states and results")
    context: Annotated[int, Field(ge=2, le=sizes.MAX_CONTEXT, strict=True)] = Field(
        description="positions that a session can hold"
    )
    functions: Functions = Field(default=Functions(), description="tokens per call of each function")
    chunks: Annotated[int, Field(ge=1, le=sizes.MAX_CHUNKS, strict=True)] | Literal["auto"] | ChunkSizes = Field(
        default=1,
        description="how many packages hold the model, one after another in running order; `auto`: as few as keep each "
        "below the 0.95 GB of weights that a phone loads; with the format `coreai` always 1",
    )
    table: Literal["package", "host"] = Field(
        default="package",
        description="where the embedding table is: in the `package`, or a raw file from which the `host` hands in the "
        "rows of its tokens",
    )
    states: Literal["packed", "per_kind"] = Field(
        default="packed",
        description="`packed`: kinds of one geometry share one state for their keys and values; `per_kind`: each kind "
        "has two states",
    )
    cache: Literal["state", "functional"] = Field(
        default="state",
        description="who keeps keys and values between calls: the runtime, as a `state`, or the host: `functional`, "
        "they come in with a call and their new rows go out, for chips that cannot compile the states; with the format "
        "`coreai` always `state`",
    )
    recurrent_state: Literal["float16", "two_float16"] = Field(
        default="float16",
        description="how the state of a recurrence is kept between calls, or between commits: as `float16`, or as "
        "`two_float16` whose sum it is, advanced in float32, so that slow heads forget and small increments count",
    )
    buffer: Annotated[int, Field(ge=0, le=sizes.MAX_BUFFER, strict=True)] = Field(
        default=0,
        description="rows that layers which carry a state keep since the last `commit`: any position since then can be "
        "gone back to, as drafts need it; 0: each call returns the whole state, of one position",
    )
    attention_layout: Literal["auto", "channels", "last"] = Field(
        default="auto",
        description="the axis of attention scores that holds the keys: `last`, which the engine pads to 64 bytes, or "
        "`channels`, which may exceed 16,384 on every chip; `auto` is `last` up to a context of 16,384",
    )
    outputs: Literal["logits", "ids"] = Field(
        default="logits",
        description="what a call returns for the next token: `logits`, or `ids`, the best token and its logit, for "
        "hosts that never sample",
    )
    mlp_layout: Literal["row", "8x8"] = Field(
        default="row",
        description="the layout of the 64 tokens of a prefill in an MLP: a row, or 8 x 8, which is faster on M1 and "
        "A14",
    )
    norm: Literal["rms", "mirrored"] = Field(
        default="rms",
        description="how RMS norms are computed: `rms`, in steps that cannot overflow, or `mirrored`, as the layer "
        "norm of (x, -x): fewer operations, but squares that overflow float16 from 256 on unless the "
        "engine is wider inside",
    )
    float32: Annotated[list[Island], Field(max_length=sizes.MAX_ISLANDS)] = Field(
        default=[],
        description="what of each layer is computed in float32, between casts: `attention_norm`, the norm before "
        "attention. It leaves the engine and returns to it, so only what buys 3 dB or more of float16's loss belongs "
        "here",
    )
    fold: Flag = Field(
        default=True,
        description="permute weights so that the dimensions of rotary pairs are contiguous: the model stays the same, "
        "and less of each head is rotated",
    )
    residual_scale: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] | Literal["auto"] = Field(
        default=1.0,
        description="a power of two that scales the residual stream down to what float16 and the engine can hold; "
        "`auto` is the value that a verified build measures",
    )
    mlp_scale: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] = Field(
        default=1.0,
        description="a power of two that scales down the product inside a gated MLP, where float16 or the engine "
        "could not hold it; its last matrix, or the norm after it, undoes the scale: the same logits at "
        "no cost",
    )
    head_scale: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] = Field(
        default=1.0,
        description="a power of two that scales down the output of the norm before the head, where float16 or the "
        "engine could not hold it; the logits undo the scale",
    )

    @property
    def rotary_fold(self) -> RotaryFold | None:
        """The order of the dimensions of heads in the package, None where it is the checkpoint's."""
        return "contiguous" if self.fold else None

    @property
    def is_functional(self) -> bool:
        """Whether the host keeps keys and values between calls."""
        return self.cache == "functional"

    @property
    def padded(self) -> bool:
        """Whether the package tells tokens that are none from others: for the host of another project it does not."""
        return True

    @property
    def fills_calls(self) -> bool:
        """Whether hosts fill a call up with tokens that are none."""
        return self.padded

    @property
    def is_for_engine(self) -> bool:
        """Whether the Neural Engine is meant to run it, and so its limits are kept."""
        return True

    @property
    def cache_names(self) -> tuple[str, str] | None:
        """The states that hold all keys and all values, where the host of another project names them."""
        return None

    @property
    def most_padding(self) -> int:
        """The most tokens of a call that are none."""
        return max(self.functions.queries.values()) - 1 if self.padded else 0

    def name_of(self, function: str) -> str:
        """What a function is called in the package."""
        return function

    @property
    def cut(self) -> ChunkSizes:
        """`chunks` in its longest form."""
        match self.chunks:
            case int():
                return ChunkSizes(count=self.chunks)
            case "auto":
                return ChunkSizes()
            case _:
                return self.chunks

    @property
    def scale(self) -> float:
        """The residual scale as a number: `auto` is 1 until a build has measured it."""
        return 1.0 if self.residual_scale == "auto" else self.residual_scale

    @property
    def keys_last(self) -> bool:
        """Whether layers that run for one query have its keys on the last axis of their scores."""
        by_context = self.context <= sizes.MAX_LAST_AXIS
        return by_context if self.attention_layout == "auto" else self.attention_layout == "last"


class CoreMLExport(ExportOfAnyFormat):
    """Core ML's .mlpackage, which is what a recipe means that says no format."""

    format: Literal["coreml"] = Field(default="coreml", description="Core ML's .mlpackage, the usual format")
    target: Literal["iOS18"] = Field(
        default="iOS18", description="the oldest supported system: iOS 18, which is macOS 15"
    )
    compute_units: Literal["cpu_and_ne", "cpu_and_gpu", "cpu_only", "all"] = Field(
        default="cpu_and_ne",
        description="the compute units that `recipe` requests from Core ML; an app requests its own",
    )
    host: Literal["anemll"] | None = Field(
        default=None,
        description="the host of another project that the package is for: `anemll`, the monolithic form that ANEMLL's "
        "Swift host loads; null for the functions of docs/bundle.md (`coreai-models` is for the format `coreai`)",
    )
    low_rank: LowRank | None = Field(
        default=None,
        description="the low-rank products whose matrices functions take as inputs; with adapters that are not merged "
        "(`merge: false`) a build says what these need",
    )
    device: DeviceId | None = Field(
        default=None,
        description="the device or chip that the package is for: the build fails on an error by a rule of its chip "
        "(`recipe lint --device`)",
    )
    allow: dict[RuleId, Reason] = Field(
        default={},
        description="rules whose errors do not fail a build for the device, each with a reason that includes a figure",
    )

    @property
    def padded(self) -> bool:
        return self.host is None

    def name_of(self, function: str) -> str:
        theirs = {} if self.host is None else {ours: theirs for theirs, ours in anemll.OURS.items()}
        return theirs.get(function, function)

    @property
    def allowed(self) -> dict[str, str]:
        """The reasons for which errors are let pass, by rule."""
        asked: dict[str, str] = {"f32-mid": f"export.float32 has {', '.join(self.float32)}"} if self.float32 else {}
        return asked | {str(rule): reason for rule, reason in self.allow.items()}


class CoreAIExport(ExportOfAnyFormat):
    """Core AI's .aimodel, which needs the extra `coreai`."""

    format: Literal["coreai"] = Field(description="Core AI's .aimodel, which needs the extra `coreai`")
    rotary_op: Literal["plain", "composite"] = Field(
        default="plain",
        description="how rotaries are written: as `plain` operations, or as Core AI's `composite` operation, over the "
        "whole head with zeros for what does not turn: the same numbers, for which devices may have a kernel",
    )

    host: Literal["coreai-models", "coreai-models-dynamic"] | None = Field(
        default=None,
        description="the host of another project that the asset is for, the Swift runner of Apple's coreai-models: "
        "`coreai-models` is its static form, for iOS, `coreai-models-dynamic` the one of macOS, whose calls and caches "
        "have any length; null for the functions of docs/bundle.md",
    )

    # the rules of devices are of Core ML's programs
    low_rank: ClassVar[None] = None
    device: ClassVar[None] = None
    compute_units: ClassVar[Literal["all"]] = "all"
    allowed: ClassVar[dict[str, str]] = {}

    @property
    def padded(self) -> bool:
        return self.host is None

    @property
    def fills_calls(self) -> bool:
        return True  # the runner's mask hides them, and it writes their rows again

    @property
    def is_for_engine(self) -> bool:
        return self.host != "coreai-models-dynamic"  # for which its runner asks for the GPU

    @property
    def cache_names(self) -> tuple[str, str] | None:
        match self.host:
            case "coreai-models":
                return coreai_models.CACHES
            case "coreai-models-dynamic":
                return coreai_models_dynamic.CACHES
        return None

    @property
    def rotary_fold(self) -> RotaryFold | None:
        return "whole_head" if self.rotary_op == "composite" else super().rotary_fold


def _format_of(said: Any) -> str:
    """The format that a mapping says, or has if it says none; what it says, where that is no format."""
    if isinstance(said, CoreMLExport | CoreAIExport):
        return said.format
    found = said.get("format", "coreml") if isinstance(said, Mapping) else "coreml"  # what is no mapping has none
    return found if isinstance(found, str) else repr(found)


Export = Annotated[
    Annotated[CoreMLExport, Tag("coreml")] | Annotated[CoreAIExport, Tag("coreai")],
    Discriminator(_format_of),
]
