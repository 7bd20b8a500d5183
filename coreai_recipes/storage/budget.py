"""`compress.budget`: how many bits the weights may take, and how much they may lose; what to try where it is passed."""

import math
from collections import defaultdict
from dataclasses import replace
from math import prod

from coreai_recipes.recipe import Recipe
from coreai_recipes.storage.compression import Compression, Parameters, any_layer
from coreai_recipes.storage.palette import Palette

NARROWEST = Palette(1, 16)
NAMED = 3  # of those that take most


def bits_over(recipe: Recipe, stored: Parameters) -> str | None:
    """What is to be said of more bits a weight than the budget, None within it."""
    budget = None if recipe.compress is None else recipe.compress.budget
    if budget is None or budget.bits_per_weight is None or stored.bits_per_weight <= budget.bits_per_weight:
        return None
    return (
        f"compress.budget.bits_per_weight: {stored.bits_per_weight:.4g} bits a weight, "
        f"and {budget.bits_per_weight:g} are allowed\n"
        f"  {_largest(stored)}: use fewer bits there, by a rule of `compress`, or fewer for all\n"
        f"  {_lowest(stored, budget.bits_per_weight)}"
    )


def kl_over(recipe: Recipe, nats: float) -> str | None:
    """What is to be said of a larger KL divergence than the budget, None within it."""
    budget = None if recipe.compress is None else recipe.compress.budget
    if budget is None or budget.kl is None or nats <= budget.kl:
        return None
    return (
        f"compress.budget.kl: {nats:.4g} nats, but only {budget.kl:g} are allowed\n"
        "  use more bits or smaller groups for all, or by a rule of `compress` for the matrices that lose most: "
        f"`recipe compress RECIPE --budget kl={budget.kl:g}` finds them"
    )


def lowest_bits(stored: Parameters) -> float:
    """Bits a weight with every matrix in palettes of one bit: no form has fewer."""
    narrowest = replace(stored, compression=Compression(default=NARROWEST))
    return narrowest.bits_per_weight


def _lowest(stored: Parameters, allowed: float) -> str:
    lowest = lowest_bits(stored)
    if allowed < lowest:
        return f"no rules reach that: the lowest is {math.ceil(1000 * lowest) / 1000:g}, palettes of 1 bit for all"
    return "`recipe compress RECIPE --budget BITS` finds the rules that lose least; it goes down to 2 bits"


def _largest(stored: Parameters) -> str:
    """Those that take most bytes, the same matrix of all layers together."""
    bits, weights = defaultdict[str, int](int), defaultdict[str, int](int)
    for name, shape in stored.shapes.items():
        pattern = any_layer(name)
        bits[pattern] += 8 * stored.compression.storage(name, shape).bytes(shape)
        weights[pattern] += prod(shape)
    most = sorted(bits, key=lambda pattern: -bits[pattern])[:NAMED]
    words = [f"{name} {bits[name] / (8 * stored.bytes):.0%} at {bits[name] / weights[name]:.2f} bits" for name in most]
    return f"of the bytes take {', '.join(words)}"
