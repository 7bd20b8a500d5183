"""`compress.budget`: how many bits the weights may take, and how much they may lose; what to try where it is passed."""

from collections import defaultdict
from math import prod

from coreai_recipes.recipe import Recipe
from coreai_recipes.storage.compression import Parameters, any_layer

NAMED = 3  # of those that take most


def bits_over(recipe: Recipe, stored: Parameters) -> str | None:
    """What is to be said of more bits a weight than the budget, None within it."""
    budget = None if recipe.compress is None else recipe.compress.budget
    if budget is None or budget.bits_per_weight is None or stored.bits_per_weight <= budget.bits_per_weight:
        return None
    return (
        f"compress.budget.bits_per_weight: {stored.bits_per_weight:.4g} bits a weight, "
        f"and {budget.bits_per_weight:g} are allowed\n"
        f"  {_largest(stored)}: fewer bits there by a rule of `compress`, or fewer for all"
    )


def kl_over(recipe: Recipe, nats: float) -> str | None:
    """What is to be said of a larger KL divergence than the budget, None within it."""
    budget = None if recipe.compress is None else recipe.compress.budget
    if budget is None or budget.kl is None or nats <= budget.kl:
        return None
    return (
        f"compress.budget.kl: {nats:.4g} nats, and {budget.kl:g} are allowed\n"
        "  more bits or smaller groups for all, or by a rule of `compress` for the matrices that lose most"
    )


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
