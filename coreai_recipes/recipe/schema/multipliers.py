"""Numbers by which a model multiplies what passes a block. They are multiplied into its weights as these are read."""

from pydantic import Field

from coreai_recipes.recipe.schema.fields import PositiveFloat, Spec


class AttentionMultipliers(Spec):
    """Factors of what passes an attention."""

    input: PositiveFloat = Field(default=1.0, description="of what q, k and v read (attention_in_multiplier)")
    key: PositiveFloat = Field(default=1.0, description="of keys (key_multiplier)")
    output: PositiveFloat = Field(default=1.0, description="of what o gives (attention_out_multiplier)")


class StateSpaceMultipliers(Spec):
    """Factors of what passes a state space."""

    input: PositiveFloat = Field(default=1.0, description="of what its projections read (ssm_in_multiplier)")
    gate: PositiveFloat = Field(default=1.0, description="of the gate's projection (ssm_multipliers, the first)")
    values: PositiveFloat = Field(default=1.0, description="of the values' projection (the second)")
    keys: PositiveFloat = Field(default=1.0, description="of the keys' projection (the third)")
    queries: PositiveFloat = Field(default=1.0, description="of the queries' projection (the fourth)")
    step: PositiveFloat = Field(default=1.0, description="of the steps' projection (the fifth)")
    output: PositiveFloat = Field(default=1.0, description="of what its last projection gives (ssm_out_multiplier)")


class MLPMultipliers(Spec):
    """Factors of what passes a gated MLP."""

    gate: PositiveFloat = Field(default=1.0, description="of the gate's projection (mlp_multipliers, the first)")
    output: PositiveFloat = Field(default=1.0, description="of what `down` gives (the second)")
