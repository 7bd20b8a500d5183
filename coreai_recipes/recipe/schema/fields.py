"""Numbers, names and flags as a recipe has them, and the base of all its parts."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from coreai_recipes.recipe import sizes
from coreai_recipes.recipe.kinds import note_model

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
Taps = Annotated[int, Field(ge=2, le=64, strict=True)]  # of a convolution over positions
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


NoFlag = BeforeValidator(_refuse_flag)
One = Annotated[Literal[1], NoFlag]


class Spec(BaseModel):
    """Base of every part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        note_model(cls)
