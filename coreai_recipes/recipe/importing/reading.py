"""config.json -> a model as a recipe says it, by the rules of its family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.checking import (
    NOT_UNDERSTOOD,
    find_config_problems,
    find_notes,
    judge_value,
    shown,
    why_not_of_type,
)
from coreai_recipes.recipe.importing.conditions import (
    Unreadable,
    adjust,
    divisor_of,
    entries_of,
    evaluate,
    holds,
    layers_of,
    value_in,
)
from coreai_recipes.recipe.importing.family import Family
from coreai_recipes.recipe.importing.layer_pattern import shortest_layers
from coreai_recipes.recipe.importing.paths import get_path, set_path
from coreai_recipes.recipe.importing.rope import find_foreign_keys, find_rope_notes, put_rotary, read_rope
from coreai_recipes.recipe.importing.rules import FieldRule
from coreai_recipes.recipe.importing.spelling import key_of, spread
from coreai_recipes.recipe.sizes import MAX_KINDS, MAX_LAYERS

Traits = dict[str, str]
KIND, WINDOW = "attention.kind", "attention.window"


@dataclass
class ModelRead:
    """A stack of layers as a recipe's `model` (or `draft`) says it, plain data.

    Attributes:
        weights: the table of weight names.
        origins: for a path (of the model, or of a kind with the kind's name) the config's field that said it.
        notes: what of the config was left out, and why.
    """

    data: dict[str, Any]
    origins: dict[tuple[str | None, str], str] = field(default_factory=dict)
    weights: str = "llama"
    notes: tuple[str, ...] = ()


def read_model(config: Mapping[str, Any], family: Family, is_draft: bool = False) -> ModelRead:
    """The model that a config describes; a draft's layers may share caches that are another model's.

    Raises CheckpointError with every field that cannot be read, by name.
    """
    config = spread(config, family)
    problems = list(find_config_problems(config, family))
    if not problems:
        try:
            return _Reader(config, family, is_draft).read()
        except Unreadable as unreadable:
            problems = [str(problem) for problem in unreadable.args]
    raise CheckpointError(*(f"config.json: {problem}" for problem in dict.fromkeys(problems)))


class _Reader:
    """One reading: the layers are told apart first, and each kind is then described."""

    def __init__(self, config: Mapping[str, Any], family: Family, is_draft: bool) -> None:
        self.config, self.family, self.is_draft = config, family, is_draft
        self.model: dict[str, Any] = {}
        self.weights = family.weights
        self.origins: dict[tuple[str | None, str], str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []

    def read(self) -> ModelRead:
        traits = self.traits()
        listed, thetas = self.listed(len(traits)), self.thetas(len(traits))
        names = numbered([self.kind_name(each) for each in traits], listed)
        names = [name + theta_name(theta, thetas) for name, theta in zip(names, thetas, strict=True)]
        overrides = self.overrides(names)
        kinds: dict[str, dict[str, Any]] = {}
        self.problems += find_foreign_keys(self.config, self.family)
        for name, each in dict(zip(names, traits, strict=True)).items():
            own = {**listed[names.index(name)], **overrides.get(name, {})}
            kinds[name] = self.read_kind(name, each, {**self.config, **own})
        for name, theta in dict(zip(names, thetas, strict=True)).items():
            if theta is not None:
                kinds[name]["rotary"] = {**kinds[name]["rotary"], "theta": theta} if theta else {"kind": "none"}
        for name, each in dict(zip(names, traits, strict=True)).items():
            self.share(name, each, kinds, dict(enumerate(traits)), names)
        if len(kinds) > MAX_KINDS:
            self.problems.append(f"{len(kinds)} kinds of layers; a recipe has {MAX_KINDS} at most")
        if self.problems:
            raise Unreadable(*self.problems)
        embedding = self.model.get("embedding", {})
        if embedding.get("width") == self.model.get("hidden_size"):
            embedding.pop("width", None)  # what is unsaid is the same
        self.model["kinds"] = kinds
        self.model["layers"] = shortest_layers(names)
        notes = (*find_notes(self.config, self.family), *find_rope_notes(self.config, self.family))
        return ModelRead(self.model, self.origins, self.weights, (*notes, *self.notes))

    def listed(self, count: int) -> list[dict[str, Any]]:
        """What fields that may list a value for each layer say of each."""
        fields = [name for name, rule in self.family.fields.items() if rule.each is not None]
        entries = {name: entries_of(self.config, name, self.family) for name in fields}
        return [{name: entries[name][index] for name in fields} for index in range(count)]

    def traits(self) -> list[Traits]:
        """What each layer is in every respect."""
        count = value_in(self.config, self.family.layer_count, self.family)
        if count > MAX_LAYERS:
            raise Unreadable(f"{self.family.layer_count}: {count} layers; a recipe has {MAX_LAYERS} at most")
        found: list[Traits] = [{} for _ in range(count)]
        for trait in trait_order(self.family):
            values = layers_of(trait, count, self.config, self.family, found)
            for layer, value in zip(found, values, strict=True):
                layer[trait] = value
        return self.widen(found)

    def thetas(self, count: int) -> list[float | None]:
        """Each layer's own theta, where the family has such: 0 for one that does not turn."""
        name = self.family.thetas
        given = value_in(self.config, name, self.family) if name else None
        if given is None:
            return [None] * count
        for index, theta in enumerate(given):
            reason = why_not_of_type(theta, "number") if theta != 0 else None
            if reason:
                raise Unreadable(f"{name}.{index}: {shown(theta)} {reason}")
        if len(given) != count:
            raise Unreadable(f"{name}: lists {len(given)} layers, and there are {count}")
        return [float(theta) for theta in given]

    def widen(self, found: list[Traits]) -> list[Traits]:
        """The layers, of which those are full whose window is as long as the texts that the model was trained with:
        it never slides. Only where the two are alike otherwise, for what slides may have a rotary of its own."""
        trait = plain_windows(self.family)
        window = next((name for name, rule in self.family.fields.items() if WINDOW in rule.sets), None)
        if trait is None or window is None or not any(layer[trait] == "sliding" for layer in found):
            return found
        size, longest = (value_in(self.config, name, self.family) for name in (window, self.family.longest))
        if size is None or size < longest:
            return found
        self.notes.append(f"{window}: {size}: never slides within the {longest} positions that it was trained for")
        return [{**layer, trait: "full"} for layer in found]

    def kind_name(self, traits: Traits) -> str:
        """`sliding`, `full_shared`: what the layers are, in a word each."""
        words = []
        for trait, spec in self.family.layers.items():
            name = spec.values[traits[trait]].name
            words.append(traits[trait] if name is None else name)
        return "_".join(word for word in words if word) or "layer"

    def overrides(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """What single layers say over the whole config, by kind."""
        field_name = self.family.per_layer
        given = value_in(self.config, field_name, self.family) if field_name else None
        if field_name and field_name in self.config and given is None:
            raise Unreadable(
                f"{field_name}: null: leave it out, or give it a value"
            )  # transformers tells the two apart
        if not given:
            return {}
        for key, fields in given.items():
            if not (key.isdecimal() and int(key) < len(names)) or not isinstance(fields, dict):
                raise Unreadable(f"{field_name}.{key}: not the fields of a layer")
            for name, value in fields.items():
                rule = self.family.fields.get(name)
                if rule is None or not rule.sets or any(path.startswith("model.") for path in rule.sets):
                    raise Unreadable(f"{field_name}.{key}.{name}: {NOT_UNDERSTOOD}")
                self.problems += [f"{field_name}.{key}.{problem}" for problem in judge_value(name, value, rule)]
        found: dict[str, dict[str, Any]] = {}
        by_index = {int(key): fields for key, fields in given.items()}  # transformers pads its keys: "05"
        for index, name in enumerate(names):
            fields = by_index.get(index, {})
            first = names.index(name)
            if found.setdefault(name, fields) != fields:
                raise Unreadable(f"{field_name}: layers {first} and {index} differ in it and are alike otherwise")
        if self.problems:
            raise Unreadable(*self.problems)
        return found

    def read_kind(self, name: str, traits: Traits, config: Mapping[str, Any]) -> dict[str, Any]:
        """A kind's description; what it says of the model as a whole goes there."""
        kind: dict[str, Any] = {}
        for path, value in self.family.fixed.items():
            self.put(kind, name, path, value)
        for path, expression in self.family.derived.items():
            self.put(kind, name, path, evaluate(expression, config, self.family))
        for slot in self.family.rope.values():
            if holds_traits(slot.of, traits):
                paths, problems = read_rope(slot, config, self.family)
                put_rotary(kind, {path: value for path, value in paths.items() if value is not None})
                self.problems += problems
        for rows in self.family.switches.values():
            row = next((row for row in rows if holds(row.given, config, self.family)), None)
            if row is None:
                fields = dict.fromkeys(name for each in rows for name in each.given)
                said = ", ".join(f"{field} {key_of(value_in(config, field, self.family))}" for field in fields)
                self.problems.append(f"{next(iter(fields))}: {said}: {NOT_UNDERSTOOD}")
                continue
            for path, value in row.set.items():
                self.put(kind, name, path, value, next(iter(row.given)))
        active = [
            (field_name, rule)
            for field_name, rule in self.family.fields.items()
            if applies(rule, traits, config, self.family) and field_name not in self.family.rope_fields
        ]
        for field_name, rule in active:
            self.set_field(kind, name, field_name, rule, config)
        for field_name, rule in active:
            self.set_late(kind, name, field_name, rule, config)
        for trait, value in traits.items():
            is_so = self.family.layers[trait].values[value]
            for path, setting in is_so.set.items():
                self.put(kind, name, path, setting)
            for path, expression in is_so.derived.items():
                value = evaluate(expression, config, self.family)
                of_field = self.family.fields.get(expression)  # whose words are the recipe's too
                self.put(kind, name, path, value if of_field is None else to_recipe(of_field, value))
        if get_path(kind, "rotary.kind") == "none":
            kind["rotary"] = {"kind": "none"}
        attention = kind.get("attention", {})
        head_dim = attention.get("head_dim", 0)
        if attention.get("scale") is not None and head_dim > 0 and attention["scale"] == head_dim**-0.5:
            del attention["scale"]  # what is unsaid is the same
        return kind

    def set_field(
        self, kind: dict[str, Any], name: str, field_name: str, rule: FieldRule, config: Mapping[str, Any]
    ) -> None:
        value = value_in(config, field_name, self.family)
        if not rule.sets or is_off(rule, value):
            return
        if value is None:
            self.problems.append(f"{field_name}: null, and layers of kind {name} need it")
            return
        value, divisor = adjust(rule, value, config, self.family), divisor_of(rule, config, self.family)
        for path in rule.sets:
            if not path.endswith("?"):
                self.put(kind, name, path, to_recipe(rule, value, divisor), field_name)

    def set_late(
        self, kind: dict[str, Any], name: str, field_name: str, rule: FieldRule, config: Mapping[str, Any]
    ) -> None:
        """What depends on what is there by now."""
        value = value_in(config, field_name, self.family)
        if rule.doubles and value is True:
            self.put(kind, name, rule.doubles, 2 * get_path(kind, rule.doubles), field_name)
        value, divisor = adjust(rule, value, config, self.family), divisor_of(rule, config, self.family)
        for path in rule.sets:
            bare = path.removesuffix("?")
            holder = bare.rpartition(".")[0]
            there = get_path({**kind, "model": self.model}, holder)
            if path.endswith("?") and there and not is_off(rule, value):
                self.put(kind, name, bare, to_recipe(rule, value, divisor), field_name)

    def put(self, kind: dict[str, Any], name: str, path: str, value: Any, origin: str | None = None) -> None:
        if path == "weights":
            self.weights = value
            return
        is_model = path.startswith("model.")
        set_path(self.model if is_model else kind, path.removeprefix("model."), value)
        if origin:
            self.origins[None if is_model else name, path.removeprefix("model.")] = origin

    def share(
        self, name: str, traits: Traits, kinds: dict[str, dict[str, Any]], layers: dict[int, Traits], names: list[str]
    ) -> None:
        """Kinds that read the cache of the last layer that is alike but for this and for what attends to nothing."""
        for trait, value in traits.items():
            shares = self.family.layers[trait].values[value].shares
            if shares is None:
                continue
            owner = self.attending({**traits, trait: shares})
            owners = [names[index] for index, layer in layers.items() if self.attending(layer) == owner]
            if owners:
                kinds[name]["attention"]["shares_kv_with"] = owners[-1]
            elif not self.is_draft:
                field_name = next(field for rule in self.family.layers[trait].rules for field in rule.fields)
                said = shown(value_in(self.config, field_name, self.family))
                self.problems.append(
                    f"{field_name}: {said}: no layer is left whose cache those of kind {name} could read"
                )

    def attending(self, traits: Traits) -> Traits:
        """What of them makes a difference to keys and values."""
        return {name: value for name, value in traits.items() if self.family.layers[name].attends}


def numbered(names: list[str], listed: list[dict[str, Any]]) -> list[str]:
    """The kinds' names, of which those of one name get a number behind it that lists tell apart."""
    seen: dict[str, list[dict[str, Any]]] = {}
    found = []
    for name, own in zip(names, listed, strict=True):
        alike = seen.setdefault(name, [])
        if own not in alike:
            alike.append(own)
        number = alike.index(own) + 1
        found.append(name if number == 1 else f"{name}_{number}")
    return found


def theta_name(theta: float | None, thetas: list[float | None]) -> str:
    """What a kind's name says of its theta, where layers differ in it."""
    turning = [each for each in dict.fromkeys(thetas) if each]
    if theta is None or (theta and turning[0] == theta):
        return ""
    return f"_theta{turning.index(theta) + 1}" if theta else "_nope"


def plain_windows(family: Family) -> str | None:
    """The trait in which layers slide or are full, and differ in nothing else."""
    for trait, spec in family.layers.items():
        sets = {value: dict(each.set) for value, each in spec.values.items()}
        if sets == {"sliding": {KIND: "sliding"}, "full": {KIND: "full"}}:
            own_rotary = any(trait in slot.of for slot in family.rope.values())
            looked_at = any(trait in rule.when for other in family.layers.values() for rule in other.rules)
            return None if own_rotary or looked_at else trait
    return None


def trait_order(family: Family) -> list[str]:
    """Traits whose rules look at another one come after it."""
    looks = {
        trait: any(name in family.layers for rule in spec.rules for name in rule.when)
        for trait, spec in family.layers.items()
    }
    return sorted(family.layers, key=lambda trait: looks[trait])


def applies(rule: FieldRule, traits: Mapping[str, str], config: Mapping[str, Any], family: Family) -> bool:
    """Whether a field means anything for a layer."""
    return holds_traits(rule.of, traits) and holds(rule.when, config, family)


def holds_traits(of: Mapping[str, str], traits: Mapping[str, str]) -> bool:
    return all(traits.get(trait) == value for trait, value in of.items())


def is_off(rule: FieldRule, value: Any) -> bool:
    """Whether a value says that the mechanism is not there."""
    if value is None:
        return rule.default is None or (rule.is_off_said and rule.off is None)
    return rule.off is not None and value == rule.off


def to_recipe(rule: FieldRule, value: Any, divisor: float = 1) -> Any:
    """The recipe's word for the config's."""
    if rule.over is not None:
        return value / divisor
    if rule.times is not None:
        return value * divisor
    if rule.among is not None:
        return value // divisor
    if rule.via is not None:
        return value // 2 if rule.via == "half" else value**-0.5 if rule.via == "inverse_sqrt" else 1 / value
    return value if rule.values is None else rule.values[key_of(value)]
