"""Adapters: small matrices that were trained beside a model, and change it."""

from typing import Annotated

from pydantic import Field

from coreai_recipes.recipe.schema.fields import Name, Spec


class Adapter(Spec):
    """A low-rank adapter in PEFT's format (LoRA, rsLoRA, DoRA), merged into the weights as they are read."""

    name: Name = Field(description="what it is called, in the manifest and in `--adapter NAME=SRC`")
    source: Annotated[str, Field(min_length=1, max_length=1000)] = Field(
        description="a folder with adapter_config.json and adapter_model.safetensors, or a hub id"
    )
    scale: Annotated[float, Field(ge=-100, le=100, strict=True, allow_inf_nan=False)] = Field(
        default=1.0, description="by what its own scale is multiplied"
    )
