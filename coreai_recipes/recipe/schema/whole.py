"""A recipe as a whole: its model, its draft, how weights are stored, what it must equal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from coreai_recipes.recipe import rules, sizes
from coreai_recipes.recipe.schema.adapters import Adapter
from coreai_recipes.recipe.schema.export import (
    Export,
)
from coreai_recipes.recipe.schema.fields import (
    Name,
    NoFlag,
    One,
    PositiveFloat,
    Spec,
    Vocabulary,
)
from coreai_recipes.recipe.schema.model import (
    Model,
    Stack,
)
from coreai_recipes.recipe.schema.rotary import (
    LongRopeScaling,
)

MODEL, DRAFT = "model", "draft"  # where a recipe's stacks stand in it


class Centroids(Spec):
    """An ordered-embedding head: only tokens of the best `top` of `count` equal clusters get a logit of their own."""

    count: Vocabulary = Field(description="clusters of the vocabulary (num_centroids)")
    top: Vocabulary = Field(description="clusters that are searched (centroid_intermediate_top_k)")


class StoredFloat16(Spec):
    """Two bytes per weight."""

    kind: Literal["float16"]


Block = Annotated[int, Field(ge=1, le=sizes.MAX_BLOCK, strict=True)]

Flag = Annotated[bool, Field(strict=True)]


class StoredIntegers(Spec):
    """Four or eight bits per weight, and a float16 scale per channel or block of one: what a GPU reads best."""

    kind: Literal["int4", "int8"]
    block: Block | None = Field(
        default=None,
        description="weights of a channel that share a scale; all of them by default, and where no near number divides",
    )
    symmetric: Flag | None = Field(default=None, description="false adds an offset to each scale")


Bits = Annotated[Literal[1, 2, 3, 4, 6, 8], NoFlag]
Group = Annotated[int, Field(ge=1, le=sizes.MAX_GROUP, strict=True)]


class StoredPalette(Spec):
    """Each weight is an index into 2^bits float16 values that a group of channels shares; the engine reads it best."""

    kind: Literal["palettize"]
    bits: Bits = Field(description="bits per weight")
    group: Group = Field(
        default=16,
        description="channels that share a palette; where it does not divide a matrix, the next smaller number that "
        "does",
    )


class StoredSource(Spec):
    """Each matrix as the checkpoint has it, where a package holds that to the bit: integers with a scale for each block
    or channel; else float16. It is said as one word, `source`."""

    kind: Literal["source"]


Stored = StoredFloat16 | StoredIntegers | StoredPalette | StoredSource


def _as_mapping(said: Any) -> Any:
    return {"kind": "source"} if said == "source" else said


def _word_too(schema: dict[str, Any]) -> None:
    mapping = {key: schema.pop(key) for key in ("discriminator", "oneOf") if key in schema}
    schema["anyOf"] = [{"const": "source", "type": "string"}, mapping]


class StorageRule(Spec):
    """Matrices to store in another way than the default. Fields that it leaves out are the default's."""

    match: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="names of matrices, with `*` for any characters: `layers.*.mlp.down`, `embedding`, `head`"
    )
    kind: Literal["float16", "int4", "int8", "palettize"] | None = Field(
        default=None, description="how these matrices are stored"
    )
    bits: Bits | None = Field(default=None, description="bits per weight, for palettes")
    group: Group | None = Field(default=None, description="channels that share a palette")
    block: Block | None = Field(default=None, description="weights of a channel that share a scale, for integers")
    symmetric: Flag | None = Field(default=None, description="false gives integers offsets")

    def over(self, default: Stored) -> Stored:
        """What it makes of the default, whose fields hold where the kind is the same."""
        kind = self.kind or default.kind
        said = self.model_dump(include={"bits", "group", "block", "symmetric"}, exclude_none=True)
        is_alike = isinstance(default, StoredPalette) is (kind == "palettize") and default.kind != "float16"
        below = default.model_dump() if is_alike else {}
        match kind:
            case "source":
                return StoredSource(kind="source")
            case "float16":
                return StoredFloat16(kind="float16")
            case "palettize":
                return StoredPalette.model_validate(below | said | {"kind": kind})
            case _:
                return StoredIntegers.model_validate(below | said | {"kind": kind})


class Budget(Spec):
    """Limits on the size and the loss of a build, which fails beyond them."""

    bits_per_weight: PositiveFloat | None = Field(
        default=None, description="bits per weight in the package, float16 vectors included"
    )
    kl: PositiveFloat | None = Field(
        default=None,
        description="mean KL divergence in nats from the checkpoint's own weights, as stage `compressed` measures it",
    )


class Calibration(Spec):
    """A text that says which errors of weights matter: matrices of few bits are fitted to it."""

    text: Literal["default"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        default="default",
        description="files of plain text, UTF-8, seen from the recipe's folder; `default` is a text of many kinds that "
        "ships with the project",
    )
    tokens: Annotated[int, Field(ge=sizes.FEWEST_TOKENS, le=sizes.MOST_TOKENS, strict=True)] = Field(
        default=16384, description="how much of it is read"
    )


class Compress(Spec):
    """How weights are stored. Norms, biases and other vectors stay float16, and so do tables that a
    host reads, unless a rule names them."""

    default: Annotated[Annotated[Stored, Field(discriminator="kind")], BeforeValidator(_as_mapping)] = Field(
        default=StoredFloat16(kind="float16"),
        description="how every matrix is stored, the embedding table included; defaults to float16; `source`: as the "
        "checkpoint has it",
        json_schema_extra=_word_too,
    )
    rules: Annotated[list[StorageRule], Field(max_length=sizes.MAX_RULES)] | None = Field(
        default=None, description="matrices to store in another way; if several rules match, the last one applies"
    )
    calibration: Calibration | None = Field(
        default=Calibration(),
        description="text to which matrices of six bits or fewer are fitted; absent: the default text; null: none, "
        "each matrix is encoded by itself",
    )
    tune: Annotated[int, Field(ge=1, le=sizes.MOST_STEPS, strict=True)] | None = Field(
        default=None,
        description="steps by which palettes, scales and norms are then changed together so that the whole model's "
        "predictions stay; takes the memory of two models in float32 and more",
    )
    regroup: Flag | None = Field(
        default=None,
        description="true puts the channels of MLPs in the order of their size, so that those that share a palette are "
        "alike; the function stays",
    )
    budget: Budget | None = Field(default=None, description="limits on size and loss; a build that exceeds one fails")


class Reference(Spec):
    """The transformers model that the recipe must equal."""

    model_type: Name = Field(description="its model_type in transformers")
    checkpoint: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the checkpoint to use unless `--checkpoint` names another"
    )


class Weights(Spec):
    """The tensor names of the checkpoint."""

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
        description="tokens drafted per call; if more than 1, the package returns only ids",
    )
    weights: Weights = Field(description="the tensor names of the draft's checkpoint")


@dataclass(frozen=True)
class RecipeStack:
    """One of a recipe's stacks: its layers, which names its checkpoint has, what it must equal; `key` is its place in
    the recipe."""

    key: str
    layers: Stack
    weights: Weights
    reference: Reference | None

    @property
    def prefix(self) -> str:
        """What stands before its parameters' names in a package and in `compress.rules`."""
        return "" if self.key == MODEL else f"{self.key}."


class Recipe(Spec):
    """One language model, described as data."""

    VERSION: ClassVar[int] = 1

    recipe: One = Field(description="version of the recipe language")
    name: Name = Field(description="the name of the bundle's folder; letters, digits, `.`, `_` and `-`")
    reference: Reference | None = Field(
        description="the transformers model that this one must equal; null if there is none"
    )
    model: Model = Field(description="the architecture")
    draft: Draft | None = Field(default=None, description="a model that drafts for this one, built as function `draft`")
    weights: Weights = Field(description="the tensor names of the checkpoint")
    adapters: Annotated[list[Adapter], Field(max_length=sizes.MAX_ADAPTERS)] | None = Field(
        default=None, description="low-rank adapters, merged into the weights in this order, or inputs of the functions"
    )
    compress: Compress | None = Field(default=None, description="how weights are stored; defaults to float16")
    export: Export = Field(description="how the package is written")

    @property
    def regroups(self) -> bool:
        """Whether the channels of MLPs are put in another order."""
        return self.compress is not None and self.compress.regroup is True

    @property
    def merged(self) -> list[Adapter]:
        """The adapters that are merged into the weights."""
        return [each for each in self.adapters or () if each.merge]

    @property
    def unmerged(self) -> list[Adapter]:
        """The adapters whose matrices are inputs of the functions."""
        return [each for each in self.adapters or () if not each.merge]

    @property
    def stacks(self) -> Mapping[str, RecipeStack]:
        """By key, in running order: the model, and the draft that reads its caches."""
        found = {MODEL: RecipeStack(MODEL, self.model, self.weights, self.reference)}
        if self.draft is not None:
            found[DRAFT] = RecipeStack(DRAFT, self.draft, self.draft.weights, self.draft.reference)
        return found

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
