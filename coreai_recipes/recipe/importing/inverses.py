"""What a field of config.json says, by what a recipe says: the rule of one field, read backwards."""

from typing import Any

from coreai_recipes.recipe.importing.rules import FieldRule
from coreai_recipes.recipe.importing.spelling import key_of, value_of


def from_recipe(rule: FieldRule, value: Any, divisor: float = 1) -> Any:
    """The config's word for the recipe's; KeyError when it has none."""
    if value is None:
        return rule.off
    if rule.over is not None:  # the shortest number of which it is the quotient
        near = (float(f"{value * divisor:.{digits}g}") for digits in range(1, 18))
        exact = next((number for number in near if number / divisor == value), value * divisor)
        return int(exact) if exact.is_integer() else exact
    if rule.among is not None:
        return value * divisor
    if rule.times is not None:
        if value % divisor:
            raise KeyError(value)
        return int(value // divisor)
    if rule.via == "half":
        return 2 * value
    if rule.via is not None:
        exact = value**-2 if rule.via == "inverse_sqrt" else 1 / value
        whole = round(exact)
        return whole if whole > 0 and abs(exact - whole) < 1e-6 * whole else exact
    if rule.values is None:
        return value
    found = next((key for key, ours in rule.values.items() if ours == value), None)
    if found is None:
        raise KeyError(value)
    return value_of(found)


def another_value(value: Any, rule: FieldRule) -> Any:
    """A value that is not this one, of those that the field may have."""
    if rule.values is not None:
        return next((value_of(key) for key in rule.values if key != key_of(value)), None)
    return not value if value is None or isinstance(value, bool) else value + 1 if isinstance(value, int) else None
