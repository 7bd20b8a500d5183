"""A recipe -> the config.json of transformers' model that it must equal: a family's rules read backwards.

What comes out is read forwards again and compared with the recipe, so a recipe that says what its family cannot be is
refused by that field.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from coreai_recipes.errors import CheckpointError, Line, RecipeError
from coreai_recipes.recipe.importing.comparing import Difference, compare_models, describe_indices
from coreai_recipes.recipe.importing.conditions import Unreadable, divisor_of, holds, layers_of
from coreai_recipes.recipe.importing.family import Family, family_names, load_family
from coreai_recipes.recipe.importing.inverses import another_value, from_recipe
from coreai_recipes.recipe.importing.paths import get_path
from coreai_recipes.recipe.importing.reading import Traits, holds_traits, read_model, trait_order
from coreai_recipes.recipe.importing.rope import write_around, write_rope
from coreai_recipes.recipe.importing.rules import Each, FieldRule, Trait
from coreai_recipes.recipe.importing.spelling import gather, value_of
from coreai_recipes.recipe.inherit import dotted
from coreai_recipes.recipe.loader import Resolved
from coreai_recipes.recipe.nearest import did_you_mean
from coreai_recipes.recipe.plain import Location, Problem
from coreai_recipes.recipe.schema import Model, Recipe

MEANT = "for another architecture, set `reference: null`"
WRONG_PAIRS = "15.4 dB on Gemma 4's global layers, where text stays fluent and fewer drafted tokens are accepted"
_ON: Any = object()  # stands for the value that the field's own rule will find


class Impossible(Exception):
    """What the family cannot be; the arguments are Problems, with their places in the recipe."""

    args: tuple[Problem, ...]


def config_for(recipe: Recipe, place: str | None = None) -> dict[str, Any]:
    """The config.json of `recipe.reference.model_type` whose model the recipe equals.

    `place` begins each line of an error (default: the recipe's name). Raises RecipeError when there is no family file
    for the model_type, and with every field that the family cannot be.
    """
    place = place or recipe.name
    if recipe.reference is None:
        raise RecipeError(f"{place}: reference: null; a recipe without a reference has no config")
    name = recipe.reference.model_type
    if name not in family_names():
        hint = did_you_mean(name, family_names())
        raise RecipeError(
            f"{place}: reference.model_type: there is no model `{name}`" + (f"\n  {hint}" if hint else "")
        )
    family = load_family(name)
    try:
        config = _Reverser(recipe, family).write()
        config = {"model_type": name, **_harmless(recipe, family), **config}
        _check(recipe, config, family)
    except Impossible as impossible:
        lines = (
            Line(f"{place}: {dotted(problem.location)}: {problem.message}\n  {problem.hint or MEANT}", problem.code)
            for problem in impossible.args
        )
        raise RecipeError(*lines) from impossible
    return config


def check_reference(resolved: Resolved) -> None:
    """Raise RecipeError where the recipe's family cannot be what the recipe says, each with the place that says it.

    A recipe without a reference, or with one that there are no rules for, is not judged.
    """
    reference = resolved.recipe.reference
    if reference is None or reference.model_type not in family_names():
        return
    try:
        config_for(resolved.recipe)
    except RecipeError as error:
        if not isinstance(error.__cause__, Impossible):
            raise
        raise RecipeError(*resolved.describe(error.__cause__.args)) from None


def _harmless(recipe: Recipe, family: Family) -> dict[str, Any]:
    """What makes no difference, but must fit the sizes."""
    scalings = [getattr(kind.rotary, "scaling", None) for kind in recipe.model.kinds.values()]
    reach = [
        math.ceil(getattr(scaling, "factor", 1) * getattr(scaling, "original_context", 1))
        for scaling in scalings
        if scaling
    ]
    padding = family.fields.get("pad_token_id")  # where a family's class wants a number
    return {family.longest: max(recipe.export.context, *reach, 1), "pad_token_id": padding.off if padding else None}


def _check(recipe: Recipe, config: Mapping[str, Any], family: Family) -> None:
    """Raise Impossible where the config's model is not the recipe's."""
    try:
        theirs = Model.model_validate(read_model(config, family).data)
    except CheckpointError as error:
        lines = (line.removeprefix("config.json: ") for line in error.problems)
        raise Impossible(
            *(Problem(("reference", "model_type"), "reference-unreadable", f"{family.name}: {line}") for line in lines)
        ) from None
    problems = [
        Problem(
            place,
            "reference-differs",
            f"{_shown(difference.one)} here, and transformers' {family.name} has {_shown(difference.other)}{layers}",
            f"write that; {MEANT}",
        )
        for difference in compare_models(recipe.model, theirs)
        for place, layers in _places(recipe.model, difference)
    ]
    if problems:
        raise Impossible(*dict.fromkeys(problems))


def _places(model: Model, difference: Difference) -> Iterator[tuple[Location, str]]:
    """Where the recipe says what differs, or would say it, and in which layers if not in all that it says it of."""
    path = tuple(difference.path.split("."))
    if not difference.layers:
        yield ("model", *path), ""
    for name in dict.fromkeys(model.layer_kinds[index] for index in difference.layers):
        of_kind = tuple(index for index, kind in enumerate(model.layer_kinds) if kind == name)
        layers = tuple(index for index in of_kind if index in difference.layers)
        is_own = path[0] not in ("norm", "placement") or getattr(model.kinds[name], path[0]) is not None
        place = ("model", "kinds", name, *path) if is_own else ("model", *path)
        yield place, "" if layers == of_kind else f" in {describe_indices(layers)}"


class _Reverser:
    def __init__(self, recipe: Recipe, family: Family) -> None:
        model = recipe.model
        self.weights, self.family = recipe.weights.names, family
        self.names = model.layer_kinds
        self.kinds = {name: model.kinds[name].model_dump() for name in dict.fromkeys(self.names)}
        for name, kind in self.kinds.items():
            kind["attention"]["scale"] = model.kinds[name].attention.score_scale
        self.whole = model.model_dump(exclude={"kinds", "layers"})
        self.config: dict[str, Any] = {}

    def write(self) -> dict[str, Any]:
        self.config[self.family.layer_count] = len(self.names)
        for name, rule in self.family.fields.items():
            if rule.only and not rule.allows_absence:
                self.config[name] = rule.only[0]
        traits = {name: self.recognise(name, kind) for name, kind in self.kinds.items()}
        for name, rule in self.family.fields.items():
            if rule.each is not None:
                self.config[name] = self.entries(rule, rule.each, traits)
        for trait in trait_order(self.family):
            self.solve(trait, traits)
        for rows in self.family.switches.values():
            row = next((row for row in rows if self.fits(row.set)), None)
            if row is None:
                path, *others = dict.fromkeys(path for each in rows for path in each.set)
                beside = f" beside {', '.join(others)}" if others else ""
                raise self.impossible(path, f"transformers' {self.family.name} cannot be so{beside}")
            for name, value in row.given.items():
                words = {"on": _ON, "off": self.family.fields[name].off}
                self.config[name] = words.get(value, value) if isinstance(value, str) else value
        conditions = {name for rule in self.family.fields.values() for name in rule.when}
        for name in sorted(self.family.fields, key=lambda name: name not in conditions):
            self.write_field(name, self.family.fields[name], traits)
        for name, data in self.kinds.items():
            for trait in self.family.layers:
                self.write_derived(self.family.layers[trait].values[traits[name][trait]].derived, data)
        self.write_ropes(traits)
        if self.family.thetas:
            self.config[self.family.thetas] = [self.kinds[name]["rotary"].get("theta", 0) for name in self.names]
        return gather({name: value for name, value in self.config.items() if value is not _ON}, self.family)

    def entries(self, rule: FieldRule, each: Each, traits: Mapping[str, Traits]) -> Any:
        """The value of each layer of a field that may list them; one where all have the same."""
        found = [
            from_recipe(rule, get_path(self.kinds[name], rule.sets[0]))
            if holds_traits(rule.of, traits[name])
            else each.others
            for name in self.names
        ]
        return found[0] if not rule.of and not each.always and all(value == found[0] for value in found) else found

    def recognise(self, name: str, kind: Mapping[str, Any]) -> Traits:
        """What a kind is in each respect."""
        found: Traits = {}
        for trait, spec in self.family.layers.items():
            value = next(
                (value for value, sets in spec.values.items() if self.is_so(sets.set, sets.shares, kind)), None
            )
            if value is None:
                raise self.impossible(f"model.kinds.{name}", f"transformers' {self.family.name} has no such layers")
            found[trait] = value
        return found

    @staticmethod
    def is_so(settings: Mapping[str, Any], shares: str | None, kind: Mapping[str, Any]) -> bool:
        if shares is not None and get_path(kind, "attention.shares_kv_with") is None:
            return False
        return all(get_path(kind, path) == value for path, value in settings.items())

    def fits(self, settings: Mapping[str, Any]) -> bool:
        """Whether every kind, and the model, is as these settings make it."""
        for path, value in settings.items():
            if path == "weights":
                if self.weights != value:
                    return False
            elif path.startswith("model."):
                if get_path(self.whole, path.removeprefix("model.")) != value:
                    return False
            elif any(get_path(kind, path) != value for kind in self.kinds.values()):
                return False
        return True

    def solve(self, trait: str, traits: Mapping[str, Traits]) -> None:
        """Put into the config what makes its layers those of the recipe, in one respect."""
        spec = self.family.layers[trait]
        wanted = [traits[name][trait] for name in self.names]
        known = [{other: value for other, value in traits[name].items() if other != trait} for name in self.names]
        options = self.options(spec, wanted)
        for values in product(*options.values()):
            tried = {**self.config, **dict(zip(options, values, strict=True))}
            try:
                if layers_of(trait, len(wanted), tried, self.family, known) == wanted:
                    self.config = tried
                    return
            except Unreadable:
                continue
        order = ", ".join(dict.fromkeys(wanted))
        raise self.impossible("model.layers", f"transformers' {self.family.name} cannot have {order} in this order")

    def options(self, spec: Trait, wanted: list[str]) -> dict[str, list[Any]]:
        """Values to try for each field that the rules look at, the plainest first."""
        found: dict[str, list[Any]] = {}

        def offer(name: str, values: Iterable[Any]) -> None:
            if name not in self.config:
                found.setdefault(name, []).extend(value for value in values if value not in found.get(name, []))

        for rule in spec.rules:
            if rule.listed is not None:
                words = {ours: value_of(theirs) for theirs, ours in reversed(rule.values.items())}
                listed = [words.get(value) for value in wanted]
                offer(rule.listed, [listed, None] if None not in listed else [None])
            if rule.cycle is not None:
                words = {ours: value_of(theirs) for theirs, ours in reversed(rule.values.items())}
                offer(rule.cycle, [[words.get(value) for value in wanted]])
            if rule.patterns is not None:
                words = {ours: value_of(theirs) for theirs, ours in reversed(rule.values.items())}
                listed = [words.get(value) for value in wanted]
                offer(rule.patterns, [[[listed, 1]], None] if None not in listed else [None])
            if rule.within is not None:
                offer(rule.within, [[i for i, value in enumerate(wanted, rule.counted) if value == rule.value], []])
            numbers = (rule.since, rule.last, rule.first)
            for name in (number for number in numbers if isinstance(number, str)):
                offer(name, range(len(wanted) + 1))
            if rule.after is not None:
                offer(rule.after, range(-1, len(wanted)))
            if isinstance(rule.every, str):
                offer(rule.every, range(1, len(wanted) + 2))
            if isinstance(rule.at, str):
                offer(rule.at, range(len(wanted) + 1))
            for name, value in rule.when.items():
                if name in self.family.fields:
                    field = self.family.fields[name]
                    both = [_ON, field.off] if value in ("on", "off") else [value, another_value(value, field)]
                    offer(name, both if (rule.value or rule.all) in wanted else both[::-1])
        return found

    def write_field(self, name: str, rule: FieldRule, traits: Mapping[str, Traits]) -> None:
        if self.config.get(name, _ON) is not _ON or not holds(rule.when, self.config, self.family):
            return
        if rule.doubles is not None:
            self.config[name] = self.is_doubled(rule, traits)
            return
        if rule.adjusted is not None:
            self.config[rule.adjusted.when] = False
        for path in rule.sets:
            values = self.values_at(path.removesuffix("?"), name, rule, traits)
            if not values:
                continue
            if any(value != values[0] for value in values):
                shown = ", ".join(map(_shown, dict.fromkeys(values)))
                raise self.impossible(path, f"{shown}: transformers' {self.family.name} has one {name} for all layers")
            try:
                self.config[name] = from_recipe(rule, values[0], divisor_of(rule, self.config, self.family))
            except KeyError:
                said = f"{_shown(values[0])}: transformers' {self.family.name} has no {name} like it"
                raise self.impossible(path, said) from None
            return

    def write_derived(self, derived: Mapping[str, str], kind: Mapping[str, Any]) -> None:
        """What takes a field as it is, and no rule of the field's own has written."""
        for path, name in derived.items():
            if name in self.family.fields and name not in self.config and get_path(kind, path) is not None:
                self.config[name] = from_recipe(self.family.fields[name], get_path(kind, path))

    def values_at(self, path: str, name: str, rule: FieldRule, traits: Mapping[str, Traits]) -> list[Any]:
        """What the recipe says at a path, in each kind for which this field is the last to say it."""
        if path.startswith("model."):
            return [get_path(self.whole, path.removeprefix("model."))]
        for_all, own = [], []
        later = self.later_rules(path, name)
        for kind, data in self.kinds.items():
            if holds_traits(rule.of, traits[kind]) and get_path(data, path.rpartition(".")[0]) is not None:
                value = get_path(data, path)
                for_all.append(value)
                if not any(self.overrides(other, traits[kind]) for other in later):
                    own.append(value)
        return own or for_all[:1]

    def later_rules(self, path: str, name: str) -> list[FieldRule]:
        names = list(self.family.fields)
        rules = (self.family.fields[other] for other in names[names.index(name) + 1 :])
        return [rule for rule in rules if path in rule.sets or path == rule.doubles]

    def overrides(self, rule: FieldRule, traits: Traits) -> bool:
        return holds_traits(rule.of, traits) and holds(rule.when, self.config, self.family)

    def is_doubled(self, rule: FieldRule, traits: Mapping[str, Traits]) -> bool:
        path = rule.doubles or ""
        inside = [get_path(data, path) for kind, data in self.kinds.items() if holds_traits(rule.of, traits[kind])]
        outside = [get_path(data, path) for kind, data in self.kinds.items() if not holds_traits(rule.of, traits[kind])]
        return bool(inside and outside) and inside[0] == 2 * outside[0]

    def write_ropes(self, traits: Mapping[str, Traits]) -> None:
        nested: dict[str, Any] = {}
        turn = [name for name, kind in self.kinds.items() if kind["rotary"]["kind"] != "none"]
        for slot in self.family.rope.values():
            turning = [name for name in turn if holds_traits(slot.of, traits[name])]
            if not turning:
                if slot.may_be_null and slot.nested:
                    nested[slot.nested] = None
                continue
            rotary = self.kinds[turning[0]]["rotary"]
            written = write_rope(slot, self.kinds[turning[0]])
            if written is None:
                raise self.another_rotary(turning[0], rotary["kind"], slot.usual_kind)
            self.config |= write_around(slot, rotary)
            if slot.nested is None:
                self.config["rope_parameters"] = written
            else:
                nested[slot.nested] = written
        if nested:
            self.config["rope_parameters"] = nested

    def another_rotary(self, name: str, ours: str, theirs: str) -> Impossible:
        said = f"`{ours}` here, and transformers' {self.family.name} has `{theirs}`"
        if {ours, theirs} == {"partial", "proportional"}:
            said += f", which pairs different dimensions: {WRONG_PAIRS}"
        return self.impossible(f"model.kinds.{name}.rotary.kind", said, f"write `kind: {theirs}`; {MEANT}")

    def impossible(self, path: str, message: str, hint: str = MEANT) -> Impossible:
        """What is wrong at a path of the model, or of a kind, where the first kind that has it says it."""
        path = path.removesuffix("?")
        if path == "weights":
            location: Location = ("weights", "names")
        elif path.startswith("model."):
            location = tuple(path.split("."))
        else:
            holder = path.rpartition(".")[0]
            kind = next((kind for kind, data in self.kinds.items() if get_path(data, holder)), self.names[0])
            location = ("model", "kinds", kind, *path.split("."))
        return Impossible(Problem(location, "reference-differs", message, hint))


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "none"}
    return words[value] if value is None or isinstance(value, bool) else f"{value}"
