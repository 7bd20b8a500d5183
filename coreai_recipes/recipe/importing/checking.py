"""Every field of a config.json is used, known not to matter, or refused by its name; and each value is of its type."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.importing.family import Family, Irrelevant, irrelevant_fields, noted_fields
from coreai_recipes.recipe.importing.known import is_known, is_known_anywhere
from coreai_recipes.recipe.importing.rules import FieldRule
from coreai_recipes.recipe.importing.spelling import key_of
from coreai_recipes.recipe.nearest import did_you_mean
from coreai_recipes.recipe.yaml_reader import shorten

LARGEST = 2**31 - 1
PACKED_WORDS = ("quant", "compress")  # in a field's name: it may say how weights are packed, whoever reads it
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
        elif name in family.rope_fields:
            continue  # judged where they are read, by their layers
        elif name in family.ignored or _is_noted(name, value, config, family):
            continue
        elif _inner(name, family) in irrelevant:
            yield from _judge_irrelevant(name, value, irrelevant[_inner(name, family)])
        elif is_strange(name, family) and why_left_out(name, value, config, family) is None:
            yield f"{shorten(name)}: {NOT_UNDERSTOOD}"
    for name, rule in family.fields.items():
        if name not in config and not rule.allows_absence:
            yield from judge_value(name, rule.default, rule)
    yield from _find_odd_lengths(config, family)


def _find_odd_lengths(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Lists with an entry for each layer that have more or fewer; transformers refuses such a layer_types too."""
    if family.part is not None:
        return
    rule = family.fields[family.layer_count]
    count = config.get(family.layer_count, rule.default)
    if why_not_of_type(count, "size"):
        return  # which is said already
    listed = {name for trait in family.layers.values() for each in trait.rules if (name := each.listed)}
    listed |= {name for name, each in family.fields.items() if each.each is not None}
    listed |= {name for name, entry in irrelevant_fields().items() if entry.each is not None}
    for name in sorted(listed & config.keys()):
        entries = config[name]
        is_unsaid = name in family.fields and family.fields[name].says_nothing(entries)
        if isinstance(entries, list) and len(entries) != count and not is_unsaid:
            yield f"{name}: {len(entries)} entries, and {family.layer_count} is {count}"


def find_notes(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """What is left out of a config although nothing here reads it, each with the reason: transformers' model, which is
    what a recipe is compared with, cannot see it either."""
    for name, value in config.items():
        is_open = is_strange(name, family) or _is_noted(name, value, config, family)
        reason = why_left_out(name, value, config, family) if is_open else None
        if reason is not None:
            yield f"{shorten(name)}: {shown(value)}: left out, {reason}"


def is_strange(name: str, family: Family) -> bool:
    """Whether nothing is said of a field."""
    is_said = name in family.fields or name in family.ignored or name == family.part
    return not (name in family.rope_fields or is_said or _inner(name, family) in irrelevant_fields())


def why_left_out(name: str, value: Any, config: Mapping[str, Any], family: Family) -> str | None:
    """Why a strange field cannot matter, None when it may: the name is a mechanism's, here or in another model.

    A file that is read as a family's by `--as` was made for code of its own, which may read what transformers does not
    know.
    """
    noted = noted_fields(family.name).get(name)
    if noted is not None and _is_noted(name, value, config, family):
        return f"{noted.why} ({noted.seen} has it)"
    inner = name.rpartition(".")[2]
    if is_known(family.name, inner):
        return None
    if says_nothing(value):
        return f"transformers' {family.name} has no such field, and its value is empty"
    is_own = config.get("model_type", family.name) == family.name
    is_foreign = is_known_anywhere(inner) or any(word in inner.lower() for word in PACKED_WORDS)
    return "no model in transformers has this field" if is_own and not is_foreign else None


def _is_noted(name: str, value: Any, config: Mapping[str, Any], family: Family) -> bool:
    """Whether released files of the family have a field that nothing reads there, with such a value."""
    noted = noted_fields(family.name).get(name)
    if noted is None or name in family.fields or name in family.ignored:
        return False
    if noted.same is not None:
        rule = family.fields.get(noted.same)
        return _same(value, config.get(noted.same, rule.default if rule else None))
    return any(_same(value, one) for one in noted.only or ())


def says_nothing(value: Any) -> bool:
    """Whether it is null, false, 0 or 1, or an empty text or list."""
    return value is None or value is False or value in ("", []) or (not isinstance(value, bool) and value in (0, 1))


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
    if (value is None and rule.may_be_null) or rule.says_nothing(value):
        return
    if rule.each is not None and isinstance(value, list):
        single = rule.model_copy(update={"each": None})
        odd = (one for one in value if one is None or one != rule.each.others)
        yield from (problem for one in odd for problem in judge_value(f"an entry of {name}", one, single))
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
    if entry.key is not None and isinstance(value, Mapping):
        name, value = f"{name}.{entry.key}", value.get(entry.key)
    if entry.each is not None and isinstance(value, list):
        fits = all(one == entry.each for one in value)
    elif entry.each is not None:
        fits = value is None
    else:
        fits = entry.only is None or any(_same(value, one) for one in entry.only)
    if not fits:
        reason = entry.otherwise or f"this model needs {entry.needs}, which recipes do not have"
        yield f"{name}: {shown(value)}: {reason}"


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and neither is true."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
