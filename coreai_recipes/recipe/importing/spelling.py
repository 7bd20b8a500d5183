"""A config's fields under the names that its family's rules have for them, and back; values as keys of tables."""

from collections.abc import Mapping
from typing import Any

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.family import Family


def spread(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A config with each field under the name that the family's rules have for it.

    Raises CheckpointError for a field under two names that differ: which one counts depends on transformers' class.
    """
    found: dict[str, Any] = {}
    problems = []
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in family.inline and isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif name in family.inline and (value is None or isinstance(value, list)):
            flat |= {f"{name}.{index}": inner for index, inner in enumerate(value or ())}
        else:
            flat[name] = value
    for name, value in flat.items():
        bare = family.aliases.get(name, name)
        if bare == name or bare not in flat:
            found[bare] = value
        elif value is not None and value != flat[bare]:
            problems.append(f"config.json: {name}: another name for {bare}, but the two differ")
    CheckpointError.collect(problems)
    _spell_out(found, family)
    return found


def _spell_out(config: dict[str, Any], family: Family) -> None:
    """List what a config spells, count a window's own position, and the layers that it lists where these are not said,
    as transformers does."""
    for name, spelling in family.spelled.items():
        word = config.get(name)
        if isinstance(word, str):
            del config[name]
            if config.get(spelling.listed) is None:
                config[spelling.listed] = [spelling.letters.get(letter, letter) for letter in word]
    for name, whole in family.before.items():
        count = config.pop(name, None)
        if count is not None:
            config[whole] = count + 1 if type(count) is int else count
    layers = config.get(family.counted) if family.counted else None
    if isinstance(layers, list) and config.get(family.layer_count) is None:
        config[family.layer_count] = len(layers)


def gather(fields: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """`spread` undone: fields of fields in their places."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        holder, dot, key = name.partition(".")
        if dot and holder in family.inline:
            found.setdefault(holder, {})[key] = value
        else:
            found[name] = value
    for holder, inner in found.items():
        if holder in family.inline and all(key.isdecimal() for key in inner):
            found[holder] = [inner[key] for key in sorted(inner, key=int)]
    return found


def key_of(value: Any) -> str:
    """A value as a key of a `values` table."""
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def value_of(key: str) -> Any:
    """The value that a key of a `values` table stands for."""
    words = {"true": True, "false": False, "null": None}
    return words[key] if key in words else int(key) if key.lstrip("-").isdecimal() else key
