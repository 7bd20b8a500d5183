"""A mixture of attention heads: each token attends with the few experts that its router chooses."""

from typing import Literal

from pydantic import Field

from coreai_recipes.recipe.schema.attention import Scores, WithoutOptions
from coreai_recipes.recipe.schema.fields import ExpertCount, HeadDim, Heads, PositiveFloat
from coreai_recipes.recipe.schema.mlp import ExpertRouter


class MixtureAttention(Scores, WithoutOptions):
    """A query sees every earlier position; an expert is a projection of queries, one for each KV head, and a last
    projection, and all experts share keys and values (JetMoE; arXiv 2210.05144).

    What a token's experts give is weighed by its router and added.
    """

    kind: Literal["mixture"]
    num_experts: ExpertCount = Field(description="experts per layer (num_local_experts)")
    num_kv_heads: Heads = Field(
        description="key and value heads (num_key_value_heads); an expert has a query head for each"
    )
    head_dim: HeadDim = Field(description="dimensions of one head (kv_channels)")
    router: ExpertRouter = Field(description="how a token's experts are chosen and weighed")
    bias: Literal["none", "o"] = Field(default="none", description="`o`: add a bias to the sum of the experts' outputs")
    scale: PositiveFloat | None = Field(default=None, description="factor of the scores; defaults to head_dim^-0.5")
    decode: Literal["gathered", "all"] = Field(
        default="gathered",
        description="in a call of one token, gather the weights of its experts, or compute all experts; calls of "
        "several tokens compute all",
    )

    @property
    def num_heads(self) -> int:
        """Query heads of one token, those of all its experts."""
        return self.num_kv_heads * self.router.top
