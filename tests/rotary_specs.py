"""Rotaries of every form, small, which an operation over the whole head must turn as the registered ones do."""

from coreai_recipes.recipe import schema

HEADS, D = 3, 16
YARN = schema.YarnScaling(kind="yarn", factor=4.0, original_context=64)
LONG = schema.LongRopeScaling(
    kind="longrope",
    factor=8.0,
    original_context=64,
    short_factor=[1 + 0.1 * i for i in range(6)],
    long_factor=[2 + 0.5 * i for i in range(6)],
)
SPECS: dict[str, schema.FullRotary | schema.PartialRotary | schema.ProportionalRotary] = {
    "full": schema.FullRotary(kind="full", theta=1e4),
    "interleaved": schema.FullRotary(kind="full", theta=1e4, pairing="interleaved"),
    "backwards": schema.FullRotary(kind="full", theta=1e4, backwards=True),
    "yarn": schema.FullRotary(kind="full", theta=1e4, scaling=YARN),
    "yarn, backwards": schema.FullRotary(kind="full", theta=1e4, scaling=YARN, backwards=True),
    "partial": schema.PartialRotary(kind="partial", factor=0.25, theta=1e4),
    "partial, interleaved": schema.PartialRotary(kind="partial", factor=0.5, theta=1e4, pairing="interleaved"),
    "partial, longrope": schema.PartialRotary(kind="partial", factor=0.75, theta=1e4, scaling=LONG),
    "proportional": schema.ProportionalRotary(kind="proportional", factor=0.25, theta=1e6),
    "product in float32": schema.PartialRotary(kind="partial", factor=0.5, theta=1e4, product="float32"),
    "coarse angles": schema.PartialRotary(kind="partial", factor=0.5, theta=1e4, precision="bfloat16", lossy=True),
}
