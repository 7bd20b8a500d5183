"""Every field of a config.json is used, known not to matter, or refused by its name; and each value is of its type."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.importing.family import (
    Family,
    FieldRule,
    Irrelevant,
    irrelevant_fields,
    key_of,
)
from coreai_recipes.recipe.rules import did_you_mean
from coreai_recipes.recipe.yaml_reader import shorten

LARGEST = 2**31 - 1
NOT_UNDERSTOOD = "not understood; this model needs a mechanism that recipes do not have"
_TYPES = {
    "size": "a whole number above 0",
    "count": "a whole number, 0 or more",
    "number": "a finite number above 0",
    "flag": "true or false",
    "word": "a word",
    "list": "a list",
    "mapping": "a mapping",
}


def find_config_problems(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """What is wrong with each field by itself: `hidden_size: -3 is not a whole number above 0`."""
    irrelevant = irrelevant_fields()
    for name, value in config.items():
        if name in family.fields:
            yield from judge_value(name, value, family.fields[name])
        elif _inner(name, family) in irrelevant:
            yield from _judge_irrelevant(name, value, irrelevant[_inner(name, family)])
        elif name == "rope_parameters" or name in family.rope_fields:
            continue  # judged where they are read, by their layers
        elif name != family.part and name not in family.ignored:
            yield f"{shorten(name)}: {NOT_UNDERSTOOD}"


def _inner(name: str, family: Family) -> str:
    """The name of a field inside of one that holds fields, which may have those that every config has."""
    holder, _, inner = name.partition(".")
    return inner if holder in family.inline else name


def judge_value(name: str, value: Any, rule: FieldRule) -> Iterator[str]:
    """What is wrong with the value of one field."""
    if rule.only is not None:
        if not any(_same(value, one) for one in rule.only):
            yield f"{name}: {shown(value)}: this model needs {rule.needs}, which recipes do not have"
        return
    if value is None and rule.may_be_null:
        return
    reason = why_not_of_type(value, rule.value_type)
    if reason:
        yield f"{name}: {shown(value)} {reason}"
    elif rule.values is not None and key_of(value) not in rule.values:
        known = [key for key in rule.values if key not in ("true", "false")]
        hint = did_you_mean(str(value), known)
        yield f"{name}: {shown(value)}: {NOT_UNDERSTOOD}" + (f"\n  {hint}" if hint else "")


def why_not_of_type(value: Any, kind: str | None) -> str | None:
    """The end of a sentence that says why a value is not of that type."""
    if kind in (None, "any"):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "size" | "count":
            fits = is_number and isinstance(value, int) and value >= (1 if kind == "size" else 0)
            if fits and value > LARGEST:
                return f"is more than {LARGEST}"
        case "number":
            fits = (
                is_number and math.isfinite(value) and value > 0
                if not isinstance(value, int)
                else is_number and value > 0
            )
        case "flag":
            fits = isinstance(value, bool)
        case "word":
            fits = isinstance(value, str)
        case "list":
            fits = isinstance(value, list)
        case _:
            fits = isinstance(value, dict)
    return None if fits else f"is not {_TYPES[kind]}"


def shown(value: Any) -> str:
    """A value of JSON in one short line."""
    if isinstance(value, dict | list) and value:
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return f"a number of {int(math.log10(abs(value))) + 1} digits"
    return shorten(f'"{value}"') if isinstance(value, str) else key_of(value)


def _judge_irrelevant(name: str, value: Any, entry: Irrelevant) -> Iterator[str]:
    if entry.key is not None and isinstance(value, Mapping) and entry.key in value:
        name, value = f"{name}.{entry.key}", value[entry.key]
    if entry.only is not None and not any(_same(value, one) for one in entry.only):
        yield f"{name}: {shown(value)}: this model needs {entry.needs}, which recipes do not have"


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and neither is true."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
