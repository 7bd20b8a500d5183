"""Numbers, names and files as a manifest has them, and the base of all that is described in it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from coreai_recipes.manifest.files import check_relative

Count = Annotated[int, Field(ge=1, lt=1 << 31)]
Size = Annotated[int, Field(ge=0, lt=1 << 53)]
Text = Annotated[str, Field(min_length=1, max_length=1024)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
FileName = Annotated[
    str,
    AfterValidator(check_relative),
    WithJsonSchema({"type": "string", "maxLength": 1024, "pattern": r"^(?!(.*/)?\.{0,2}(/|$))[^\\]+$"}),
]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Shape = Annotated[tuple[Count, ...], Field(max_length=8)]
OpenShape = Annotated[tuple[Count | Literal[-1], ...], Field(max_length=8)]  # -1 where each call decides


class Described(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class File(Described):
    """A file as it was sealed."""

    bytes: Size
    sha256: Digest
