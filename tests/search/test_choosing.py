"""Where bits are best spent, on made-up costs: against every choice that there is."""

import random
from itertools import product

import pytest

from coreai_recipes.search.choosing import (
    Matrix,
    Option,
    bits_of,
    in_rules,
    kl_of,
    patterns_of,
    within_bits,
    within_kl,
)

WIDTHS = (2, 3, 4, 6)


def some_matrices(seed: int, layers: int = 3, noise: float = 1.0) -> list[Matrix]:
    """Two matrices of each layer and a table, whose loss falls fourfold with each bit."""
    draw = random.Random(seed)
    names = [f"layers.{layer}.mlp.{part}" for part in ("up", "down") for layer in range(layers)] + ["embedding"]
    found = []
    for name in names:
        weights, costs = 400 if "up" in name else 100, draw.uniform(1, 1 + noise)
        options = (Option(number, costs * 4.0**-bits, bits * weights) for number, bits in enumerate(WIDTHS))
        found.append(Matrix(name, weights, tuple(options)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_choice_keeps_its_budget_and_is_near_the_best_of_all(seed: int) -> None:
    matrices = some_matrices(seed, layers=2)
    bits = 3.3 * sum(each.weights for each in matrices)
    names = [each.name for each in matrices]
    every = (dict(zip(names, options, strict=True)) for options in product(*(each.options for each in matrices)))
    best = min(kl_of(choice) for choice in every if bits_of(choice) <= bits)
    found = within_bits(matrices, bits)
    assert bits_of(found) <= bits
    assert best <= kl_of(found) <= 1.25 * best


def test_layers_that_are_nearly_alike_get_one_rule() -> None:
    matrices = some_matrices(0, layers=12, noise=0.001)
    _, rules = in_rules(matrices, within_bits(matrices, 3.5 * sum(each.weights for each in matrices)))
    assert len(rules) <= 4  # one that uses up the budget
    assert sum("*" not in pattern and pattern != "embedding" for pattern, _ in rules) <= 2


def test_rules_say_the_choice_and_the_last_that_matches_holds() -> None:
    from fnmatch import fnmatchcase

    matrices = some_matrices(3, layers=25, noise=30)
    choice = within_bits(matrices, 3.5 * sum(each.weights for each in matrices))
    default, rules = in_rules(matrices, choice)
    for each in matrices:
        form = next((f for pattern, f in reversed(rules) if fnmatchcase(each.name, pattern)), default)
        assert form == choice[each.name].form
    assert len(rules) < len(matrices) / 2


def test_a_loss_is_kept_with_the_fewest_bits() -> None:
    matrices = some_matrices(1)
    found = within_kl(matrices, 0.3)
    assert kl_of(found) <= 0.3
    assert kl_of(within_bits(matrices, 0.97 * bits_of(found))) > 0.3
    with pytest.raises(ValueError, match="every choice loses more"):
        within_kl(matrices, 1e-9)
    with pytest.raises(ValueError, match="no choice has that few"):
        within_bits(matrices, 1)


@pytest.mark.parametrize(
    ("layers", "patterns"),
    [
        ([2], ["2"]),
        ([0, 1, 2, 3], ["[0-3]"]),
        ([3, 7, 8], ["[378]"]),
        ([9, 10, 11, 12, 27], ["9", "1[0-2]", "27"]),
        ([104, 106], ["10[46]"]),
        ([0, 1, 2, 9], ["[0129]"]),  # `[0-29]` is the same, and reads as thirty layers
    ],
)
def test_layers_as_patterns(layers: list[int], patterns: list[str]) -> None:
    assert patterns_of(layers) == patterns
