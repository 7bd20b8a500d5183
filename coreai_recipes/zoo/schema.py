"""What a zoo.yaml says."""

from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.recipe.schema.fields import NoFlag, One, Spec

RANDOM = "random"
FLOAT16_BITS = 16
Bits = Annotated[Literal[1, 2, 3, 4, 6, 8, 16], NoFlag]
Format = Literal["coreml", "coreai"]
Words = Annotated[str, Field(min_length=1, max_length=1000)]


class Vary(Spec):
    """The forms in which every recipe is built: all combinations of what is listed."""

    bits: Annotated[list[Bits], Field(min_length=1)] | None = Field(
        default=None, description="as --bits of `recipe build`; 16 is float16 (by default what each recipe says)"
    )
    device: Annotated[list[Words], Field(min_length=1)] | None = Field(
        default=None, description="as --device of `recipe build`; for Core ML alone"
    )
    format: Annotated[list[Format], Field(min_length=1)] | None = Field(
        default=None, description="as `export.format` of a recipe (by default what each recipe says)"
    )


class Skip(Spec):
    """Cells that are left out: those that have all of what is said here."""

    recipe: Words | None = None
    bits: Bits | None = None
    device: Words | None = None
    format: Format | None = None


class Zoo(Spec):
    """A zoo.yaml. Paths are relative to its folder."""

    zoo: One = Field(description="the version of this language: 1")
    recipes: Annotated[list[Words], Field(min_length=1)] = Field(
        description="recipe files or names of built-in recipes"
    )
    checkpoints: dict[Words, Words] = Field(
        default_factory=dict,
        description="by recipe, as --checkpoint of `recipe build`, or `random` (by default each recipe's own)",
    )
    vary: Vary = Field(default_factory=Vary, description="the forms in which every recipe is built")
    skip: list[Skip] = Field(default_factory=list, description="combinations that are left out")
    store: Words = Field(description="a folder, or any address that fsspec knows, as s3://bucket/zoo")
