"""What a config says by a family's rules: values with their defaults, conditions, and what each layer is."""

import math
from collections.abc import Mapping
from typing import Any

from coreai_recipes.recipe.importing.family import Family
from coreai_recipes.recipe.importing.rules import FieldRule, LayerRule
from coreai_recipes.recipe.importing.spelling import key_of
from coreai_recipes.recipe.sizes import MAX_LAYERS


class Unreadable(Exception):
    """A field that the rules cannot read; the message is a problem's, the field's name first."""


def value_in(config: Mapping[str, Any], name: str, family: Family) -> Any:
    """A field's value: as it stands, else transformers' default; a null that stands for something is that."""
    rule = family.fields[name]
    value = config.get(name, rule.default)
    if value not in (None, rule.unsaid):
        return value
    return evaluate(rule.absent, config, family) if rule.absent else None


def entries_of(config: Mapping[str, Any], name: str, family: Family) -> list[Any]:
    """What a field that may list a value for each layer says of each."""
    count, value = value_in(config, family.layer_count, family), value_in(config, name, family)
    each = family.fields[name].each
    if isinstance(value, list):
        return value
    if value is not None or each is None:
        return [value] * count
    first = each.first if count > each.first else 0
    return [each.value] * first + [each.others] * (count - first)


def evaluate(expression: str, config: Mapping[str, Any], family: Family) -> Any:
    """`one`, `one // other`, `one /^ other`, which rounds up, or `one * other`, of config fields and of numbers."""

    def term(word: str) -> Any:
        return int(word) if word.isdecimal() else value_in(config, word, family)

    one, *rest = expression.split(" ")
    found = term(one)
    for operator, other in zip(rest[::2], rest[1::2], strict=True):
        by = term(other)
        found = found * by if operator == "*" else -(-found // by) if operator == "/^" else found // by
    return found


def holds(when: Mapping[str, Any], config: Mapping[str, Any], family: Family, traits: Mapping[str, str] = {}) -> bool:
    """Whether fields, and what a layer is, are as a rule wants them."""
    for name, wanted in when.items():
        if name in family.layers:
            fits = traits.get(name) == wanted
        else:
            value = value_in(config, name, family)
            is_off = value is None or value == family.fields[name].off
            fits = is_off != (wanted == "on") if wanted in ("on", "off") else value == wanted
        if not fits:
            return False
    return True


def divisor_of(rule: FieldRule, config: Mapping[str, Any], family: Family) -> float:
    """What the recipe divides a field by, or takes it so many times; 1 where it does not."""
    for whole in (rule.times, rule.among):
        if whole is not None:
            return int(value_in(config, whole, family))
    if rule.over is None:
        return 1
    value = evaluate(rule.over.removeprefix("sqrt "), config, family)
    return float(math.sqrt(value) if rule.over.startswith("sqrt ") else value)


def adjust(rule: FieldRule, value: Any, config: Mapping[str, Any], family: Family) -> Any:
    """A width as transformers' LFM2 makes it of the field, where the rule says so."""
    if rule.adjusted is None or not value_in(config, rule.adjusted.when, family):
        return value
    factor, multiple = (value_in(config, name, family) for name in (rule.adjusted.times, rule.adjusted.multiple))
    return multiple * -(-int(factor * int(2 * value / 3)) // multiple)


def layers_of(
    trait: str, count: int, config: Mapping[str, Any], family: Family, known: list[dict[str, str]]
) -> list[str]:
    """What each of `count` layers is in one respect; `known` is what is known of them already."""
    found = []
    for index in range(count):
        decided = (decide(rule, index, count, config, family, known[index]) for rule in family.layers[trait].rules)
        value = next((value for value in decided if value is not None), None)
        if value is None:
            raise Unreadable(f"layer {index} has no known {trait}")
        found.append(value)
    return found


def decide(
    rule: LayerRule, index: int, count: int, config: Mapping[str, Any], family: Family, traits: Mapping[str, str]
) -> str | None:
    """What one rule says of layer `index`, None when nothing."""
    if not holds(rule.when, config, family, traits):
        return None

    def number(of: int | str) -> int:
        value = value_in(config, of, family) if isinstance(of, str) else of
        if value is not None and not isinstance(value, int):
            raise Unreadable(f"{of}: {value!r:.40}: only supported in a config that lists its layers")
        return int(value or 0)

    if rule.all is not None:
        return rule.all
    if rule.listed is not None:
        return _listed(rule.listed, value_in(config, rule.listed, family), rule, index)
    if rule.cycle is not None:
        entries = value_in(config, rule.cycle, family)
        return _listed(rule.cycle, entries, rule, index % max(len(entries), 1))
    if rule.patterns is not None:
        return _listed(rule.patterns, _repeated(rule.patterns, value_in(config, rule.patterns, family)), rule, index)
    if rule.positive is not None:
        return rule.value if (entries_of(config, rule.positive, family)[index] or 0) > 0 else None
    if rule.every is not None:
        n = number(rule.every)
        if n < 1:
            raise Unreadable(f"{rule.every}: {n}: only supported in a config that lists its layers")
        said = index % n == (number(rule.at) if isinstance(rule.at, str) else rule.at % n)
    elif rule.since is not None:
        said = index >= number(rule.since)
    elif rule.after is not None:
        end = number(rule.after)
        said = index > (end if end >= 0 else count + end)
    elif rule.last is not None:
        said = index >= count - number(rule.last)
    elif rule.first is not None:
        said = index < number(rule.first)
    else:
        said = index + rule.counted in (value_in(config, rule.within or "", family) or ())
    return rule.value if said else None


def _repeated(name: str, pairs: Any) -> list[Any] | None:
    """What pairs of a pattern and a number list."""
    from coreai_recipes.recipe.importing.checking import NOT_UNDERSTOOD, shown

    if pairs is None:
        return None
    found: list[Any] = []
    for pair in pairs:
        match pair:
            case [list(pattern), int(times)] if 0 <= times * len(pattern) <= MAX_LAYERS:
                found += pattern * times
            case _:
                raise Unreadable(f"{name}: {shown(pair)}: {NOT_UNDERSTOOD}")
    return found


def _listed(name: str, entries: list[Any] | None, rule: LayerRule, index: int) -> str | None:
    from coreai_recipes.recipe.importing.checking import NOT_UNDERSTOOD, shown

    if entries is None:
        if "null" in rule.needs:
            raise Unreadable(f"{name}: null: this model needs {rule.needs['null']}, which recipes do not have")
        return None
    if index >= len(entries):
        raise Unreadable(f"{name}: lists {len(entries)} layers, and there are more")
    key = key_of(entries[index])
    if key in rule.needs:
        said = shown(entries[index])
        raise Unreadable(f"{name}.{index}: {said}: this model needs {rule.needs[key]}, which recipes do not have")
    if key not in rule.values:
        raise Unreadable(f"{name}.{index}: {shown(entries[index])}: {NOT_UNDERSTOOD}")
    return rule.values[key]
