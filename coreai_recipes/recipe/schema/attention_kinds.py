"""Which kinds of attention there are, and of what stands in its place."""

from typing import Annotated

from coreai_recipes.recipe.kinds import Open
from coreai_recipes.recipe.schema.attention import (
    ChunkedAttention,
    DifferentialAttention,
    FullAttention,
    LatentAttention,
    NoAttention,
    ShortConvolution,
    SlidingAttention,
)
from coreai_recipes.recipe.schema.channel_states import RGLRU, Mamba1
from coreai_recipes.recipe.schema.matrix_states import GatedDelta, Lightning, Mamba2
from coreai_recipes.recipe.schema.mixture_attention import MixtureAttention

AttentionKind = Annotated[
    FullAttention
    | SlidingAttention
    | ChunkedAttention
    | DifferentialAttention
    | LatentAttention
    | MixtureAttention
    | ShortConvolution
    | GatedDelta
    | Lightning
    | Mamba1
    | Mamba2
    | RGLRU
    | NoAttention,
    Open("attention"),
]
