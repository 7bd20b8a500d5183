"""Adapters: small matrices that were trained beside a model, and change it."""

from typing import Annotated

from pydantic import Field

from coreai_recipes.recipe import sizes
from coreai_recipes.recipe.schema.fields import Flag, Name, Spec

MatrixName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+){1,4}$", max_length=100)]


class Adapter(Spec):
    """A low-rank adapter in PEFT's format (LoRA, rsLoRA, DoRA), merged into the weights as they are read, or an input
    of the functions beside them."""

    name: Name = Field(description="what it is called, in the manifest and in `--adapter`")
    source: Annotated[str, Field(min_length=1, max_length=1000)] = Field(
        description="a folder with adapter_config.json and adapter_model.safetensors, or a hub id"
    )
    scale: Annotated[float, Field(ge=-100, le=100, strict=True, allow_inf_nan=False)] = Field(
        default=1.0, description="by what its own scale is multiplied"
    )
    merge: Flag = Field(
        default=True,
        description="whether it is merged into the weights; `false`: its matrices are inputs of the functions, and the "
        "package serves every adapter that is not merged, and the model without any",
    )


class LowRank(Spec):
    """The low-rank products that functions take the matrices of, for adapters that are not merged."""

    rank: Annotated[int, Field(ge=1, le=sizes.MAX_RANK, strict=True)] = Field(
        description="the largest rank of an adapter; those of a smaller one are filled up with zeros"
    )
    matrices: Annotated[list[MatrixName], Field(min_length=1, max_length=sizes.MAX_LOW_RANK)] = Field(
        description="the matrices of a layer that have such a product, as `attention.q` and `mlp.down`"
    )
