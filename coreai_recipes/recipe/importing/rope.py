"""Rotary parameters: where a config keeps them, in the old spelling and the new, and what a recipe says of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.recipe.importing.checking import NOT_UNDERSTOOD, judge_value, says_nothing, shown, why_not_of_type
from coreai_recipes.recipe.importing.conditions import value_in
from coreai_recipes.recipe.importing.family import Family, RopeSlot, RopeType
from coreai_recipes.recipe.importing.known import is_known_anywhere, is_rope_key
from coreai_recipes.recipe.importing.paths import get_path, set_path
from coreai_recipes.recipe.nearest import did_you_mean
from coreai_recipes.recipe.yaml_reader import shorten

TYPE_KEYS = ("rope_type", "type")
FACTOR = "partial_rotary_factor"
ORIGINAL = "original_max_position_embeddings"
ORIGINAL_PATH = "rotary.scaling.original_context"


def read_rope(slot: RopeSlot, config: Mapping[str, Any], family: Family) -> tuple[dict[str, Any], list[str]]:
    """A kind's `rotary` by its paths, and everything that is wrong with the parameters."""
    place, given = parameters_of(slot, config)
    if slot.may_be_null and says_no_rotary(slot, config):
        return {"rotary.kind": "none"}, []
    if not isinstance(given, Mapping):
        return {}, [f"{place}: {shown(given)} is not a mapping"]
    name = given.get("rope_type", given.get("type")) or "default"
    types = slot.known_types
    known = types.get(name) if isinstance(name, str) else None
    if known is None:
        hint = did_you_mean(str(name), [word for word, each in types.items() if not each.needs])
        return {}, [f"{place}.rope_type: {shown(name)}: {NOT_UNDERSTOOD}" + (f"\n  {hint}" if hint else "")]
    if known.needs:
        return {}, [f"{place}.rope_type: {shown(name)}: this model needs {known.needs}, which recipes do not have"]
    problems = list(_find_problems(place, given, name, slot, family))
    theta_place = f"{place}.rope_theta" if "rope_theta" in given else slot.theta_field or ""
    theta = given.get("rope_theta", config.get(slot.theta_field or "", slot.theta))
    theta = slot.theta if theta is None else theta
    reason = why_not_of_type(theta, "number")
    if reason:
        problems.append(f"{theta_place}: {shown(theta)} {reason}")
    paths: dict[str, Any] = {"rotary.kind": "full", "rotary.theta": theta, **known.set}
    for key, rule in known.fields.items():
        value = given.get(key)
        if rule.says_nothing(value):
            continue
        if key == ORIGINAL and slot.original_field:
            value = value_in(config, slot.original_field, family)
        value = rule.default if value is None else value
        if value is None and rule.absent:
            value = value_in(config, rule.absent, family)
        if value is None and key == known.ratio:
            value = _ratio(paths, config, family)
        if value is None and not rule.only and not rule.is_off_said:
            problems.append(f"{place}.{key}: missing, rope_type {shown(name)} needs it")
        other = next((paths[path] for path in rule.sets if paths.get(path, value) != value), None)
        if other is not None:
            problems.append(
                f"{place}.{key}: {shown(value)}: only supported where it is {shown(other)}, as its fellow is"
            )
        paths |= dict.fromkeys(rule.sets, value)
    paths |= {path: value_in(config, field, family) for path, field in known.derived.items()}
    if known.stretch:
        factor = paths.pop("rotary.scaling.factor", 1)
        if factor != 1:
            paths |= {"rotary.scaling.kind": known.stretch, "rotary.scaling.factor": factor}
    if slot.partial is not None and FACTOR not in known.fields:
        name, factor = FACTOR, given.get(FACTOR, config.get(slot.partial_field or "", slot.partial))
        dims = config.get(slot.dims_field or "")
        if dims is not None and FACTOR not in given and config.get(slot.partial_field or "") is None:
            head_dim = value_in(config, "head_dim", family)
            is_share = all(why_not_of_type(size, "size") is None for size in (dims, head_dim))
            name, factor = slot.dims_field or "", dims / head_dim if is_share else dims
        reason = why_not_of_type(factor, "number")
        if reason:
            problems.append(f"{name}: {shown(factor)} {reason}")
        elif factor != 1:
            paths |= {"rotary.kind": "partial", "rotary.factor": factor}
    return _with_late(paths), problems


def _with_late(paths: Mapping[str, Any]) -> dict[str, Any]:
    """The paths, of which those that end with `?` count only where another one is in their block."""
    found = {path: value for path, value in paths.items() if not path.endswith("?")}
    blocks = {path.rpartition(".")[0] for path in found}
    late = {path.removesuffix("?"): value for path, value in paths.items() if path.endswith("?")}
    return found | {path: value for path, value in late.items() if path.rpartition(".")[0] in blocks}


def says_no_rotary(slot: RopeSlot, config: Mapping[str, Any]) -> bool:
    """Whether a config's parameters of these layers are null."""
    given = config.get("rope_parameters")
    return isinstance(given, Mapping) and slot.nested in given and given[slot.nested] is None


def _ratio(paths: Mapping[str, Any], config: Mapping[str, Any], family: Family) -> float | None:
    """By how much the context was stretched, as transformers reckons it when the parameters do not say."""
    longest, original = value_in(config, "max_position_embeddings", family), paths.get(ORIGINAL_PATH)
    fits = all(why_not_of_type(value, "size") is None for value in (longest, original))
    return longest / original if fits else None


def parameters_of(slot: RopeSlot, config: Mapping[str, Any]) -> tuple[str, Any]:
    """Where the parameters stand, and they: rope_scaling counts before rope_parameters, as in transformers."""
    old = config.get(slot.scaling_field) if slot.scaling_field else None
    new = config.get("rope_parameters")
    if slot.nested is None:
        return (slot.scaling_field or "", old) if old else ("rope_parameters", new or slot.default)
    if new is not None and not isinstance(new, Mapping):
        return "rope_parameters", new
    own = (new or {}).get(slot.nested)
    if own is not None and not isinstance(own, Mapping):
        return f"rope_parameters.{slot.nested}", own
    if old:
        # laid over a rope_type, so that a `type` beside none of it says nothing
        return slot.scaling_field or "", {**(own or {"rope_type": "default"}), **old} if isinstance(
            old, Mapping
        ) else old
    return f"rope_parameters.{slot.nested}", own or slot.default


def find_foreign_keys(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Entries of rope_parameters that no layer reads, where each kind of layer has its own.

    transformers 5.8 to 5.14 wrote a rope_type beside them (Laguna), which says nothing there.
    """
    nested = {slot.nested for slot in family.rope.values()} - {None}
    given = config.get("rope_parameters")
    if nested and isinstance(given, Mapping):
        beside = {"rope_type"} if given.get("rope_type") == "default" and nested & given.keys() else set()
        yield from (f"rope_parameters.{key}: {NOT_UNDERSTOOD}" for key in given if key not in nested | beside)


def write_rope(slot: RopeSlot, layer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters that `read_rope` reads a kind of `layer` from; None when it could read none so."""
    rotary = layer["rotary"]
    kind, scaling = rotary["kind"], get_path(rotary, "scaling.kind")
    for name, known in slot.known_types.items():
        own_kind = known.set.get("rotary.kind", "partial" if kind == "partial" and slot.partial is not None else "full")
        scalings = {known.set.get("rotary.scaling.kind"), known.stretch or known.set.get("rotary.scaling.kind")}
        if known.needs or kind != own_kind or scaling not in scalings:
            continue
        given: dict[str, Any] = {"rope_type": name, "rope_theta": rotary["theta"]}
        for key, rule in known.fields.items():
            value = get_path(layer, rule.sets[0]) if rule.sets else rule.default
            if value is None and not rule.is_off_said:
                value = rule.unsaid
            if value is not None:
                given[key] = value
        if slot.partial is not None and FACTOR not in known.fields:
            given[FACTOR] = rotary["factor"] if kind == "partial" else 1.0
        return given
    return None


def write_around(slot: RopeSlot, rotary: Mapping[str, Any]) -> dict[str, Any]:
    """The config's own fields that `read_rope` reads beside the parameters."""
    original = get_path(rotary, ORIGINAL_PATH.removeprefix("rotary."))
    known = next((each for each in slot.known_types.values() if _scales(each, rotary)), None)
    found = {} if known is None else dict.fromkeys(known.derived.values(), original)
    if slot.original_field and known is not None and ORIGINAL in known.fields:
        found[slot.original_field] = original
    return found


def _scales(known: RopeType, rotary: Mapping[str, Any]) -> bool:
    scaling = known.set.get("rotary.scaling.kind")
    return scaling is not None and scaling == get_path(rotary, "scaling.kind")


def find_rope_notes(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Parameters that are left out of rotaries which `read_rope` has read, each with the reason."""
    for slot in family.rope.values():
        place, given = parameters_of(slot, config)
        name = given.get("rope_type", given.get("type")) or "default"
        for key, value in given.items():
            reason = _why_left_out(key, value, name, slot, family)
            if reason is not None:
                yield f"{place}.{shorten(key)}: {shown(value)}: left out, {reason}"


def _why_left_out(key: str, value: Any, rope_type: str, slot: RopeSlot, family: Family) -> str | None:
    """Why a parameter cannot matter, None when it is read or may."""
    if key in (*TYPE_KEYS, "rope_theta", FACTOR, *slot.known_types[rope_type].fields):
        return None
    function = slot.types[rope_type].like or rope_type if rope_type in slot.types else rope_type
    if is_rope_key(family.name, function, key):
        return None
    if says_nothing(value):
        return f"rope_type {rope_type} does not read it, and its value is empty"
    return None if is_known_anywhere(key) else "no model in transformers has this parameter"


def _find_problems(
    place: str, given: Mapping[str, Any], rope_type: str, slot: RopeSlot, family: Family
) -> Iterator[str]:
    known = slot.known_types[rope_type]
    for key, value in given.items():
        if key == "truncate" and value is False and slot.nested is not None and key in known.fields:
            # modeling_rope_utils looks for it beside the layers' own parameters
            yield f"{place}.{key}: false: transformers does not read it where layers have parameters of their own"
        elif key in known.fields:
            for problem in judge_value(key, value, known.fields[key]):
                yield f"{place}.{problem}"
        elif key == FACTOR and slot.partial is None and value not in (1, None):
            yield f"{place}.{key}: {shown(value)}: this family rotates whole heads"
        elif key in (*TYPE_KEYS, "rope_theta", FACTOR):
            continue
        elif _why_left_out(key, value, rope_type, slot, family) is None:
            yield f"{place}.{shorten(key)}: {NOT_UNDERSTOOD}"


def put_rotary(kind: dict[str, Any], paths: Mapping[str, Any]) -> None:
    for path, value in paths.items():
        set_path(kind, path, value)
