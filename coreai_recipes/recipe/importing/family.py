"""The language in which a family says how its config.json becomes a recipe, and the loader of families/*.yaml.

    # families/llama.yaml
    about: what the family is known by           # one sentence, for people
    weights: llama                               # the table of weight names
    fixed: {mlp.kind: gated}                     # what no field says: a path in the recipe -> its value
    derived: {attention.head_dim: hidden_size // num_attention_heads}    # what other fields make
    fields:                                      # a field of config.json, its default in transformers' config class
      hidden_size: {default: 4096, sets: model.hidden_size}
      head_dim: {absent: hidden_size // num_attention_heads, sets: attention.head_dim}
      hidden_act: {default: silu, sets: mlp.activation, values: {silu: silu, gelu_new: gelu_tanh}}
      residual_multiplier: {default: 1.0, only: [1.0], needs: a factor of the residual stream}
    ignored: {attn_logit_softcapping: why transformers does not look at it}
    switches:                                    # several fields together: one row must fit
      bias: [{if: {attention_bias: true, attention_out_bias: false}, set: {attention.bias: qkv}}]
    rope: {all: {theta: 10000.0}}                # where rotary parameters stand, by the layers they are for
    layers:                                      # what layers differ in; kinds are the combinations that occur
      attention:
        values: {sliding: {set: {attention.kind: sliding}}, full: {set: {attention.kind: full}}}
        rules: [{list: layer_types, values: {...}}, {every: 6, is: full}, {all: sliding}]   # the first that says

Paths begin with `model.` or stand in a layer kind (`attention.`, `rotary.`, `mlp.`, `experts.`). `extends` merges
mappings key by key, replaces lists, and null removes a key (but for NULL_MEANS). Everything can be read backwards too
(`reversing.py`): no rule computes what it cannot undo.
"""

# ruff: noqa: RUF012 - pydantic copies defaults; ruff cannot see that these are its models
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from coreai_recipes.recipe.importing.rules import FieldRule, Rule, Settings, SwitchRow, Trait
from coreai_recipes.recipe.kinds import activation_words
from coreai_recipes.recipe.yaml_reader import read_yaml

FAMILIES = Path(__file__).parents[1] / "families"
TABLES = Path(__file__).with_name("tables")


# what every row of wrappers.yaml says
WRAPPED = {"part": "text_config"}
ONLY = "only the text model is built."
# where null says something of its own, and removes no key of the file that is extended
NULL_MEANS = ("default", "off", "theta_field", "scaling_field", "partial_field")


class RopeType(Rule):
    """One of transformers' rope_types: the paths that it sets, and where its parameters go; or what it needs.

    Attributes:
        like: the rope_type of which this is another name.
        derived: paths that take a field of the config, which is none of the parameters.
        ratio: the parameter that, unsaid, is max_position_embeddings / original_max_position_embeddings.
        stretch: the scaling that `factor` is when it is not 1, for a type that has one without.
    """

    set: Settings = {}
    fields: dict[str, FieldRule] = {}
    needs: str | None = None
    like: str | None = None
    derived: dict[str, str] = {}
    ratio: str | None = None
    stretch: str | None = None


class RopeSlot(Rule):
    """Where the rotary parameters of some layers stand.

    Attributes:
        theta: transformers' default.
        theta_field, scaling_field, partial_field: the spelling before rope_parameters, null where there was none.
        dims_field: where the old spelling says how many dimensions turn, of `head_dim`.
        original_field: the config's own original_max_position_embeddings, which counts before the parameters'.
        nested: the key in rope_parameters, for families whose kinds have parameters of their own.
        types: rope_types that mean something of their own here; `fields` are read beside those of any type.
        partial: the default share of the head where heads turn in part, null where they turn whole.
        default: the rope_parameters of a config that has none.
        may_be_null: null parameters say that these layers do not turn.
        of: the layers that it is for.
    """

    theta: float
    theta_field: str | None = "rope_theta"
    scaling_field: str | None = "rope_scaling"
    partial_field: str | None = "partial_rotary_factor"
    dims_field: str | None = None
    original_field: str | None = None
    nested: str | None = None
    partial: float | None = None
    default: Settings = {}
    may_be_null: bool = False
    of: dict[str, str] = {}
    types: dict[str, RopeType] = {}
    fields: dict[str, FieldRule] = {}

    @property
    def usual_kind(self) -> str:
        """The rotary that these layers have when no config says otherwise."""
        if self.default.get("rope_type") == "proportional":
            return "proportional"
        return "full" if self.partial is None else "partial"

    @property
    def known_types(self) -> dict[str, RopeType]:
        """What may stand as rope_type, with everything that is then read."""
        known = {**rope_types(), **self.types}
        known = {name: known[each.like] if each.like else each for name, each in known.items()}
        if self.partial is not None:  # no model turns both, and the two pair different dimensions
            known = {name: each for name, each in known.items() if each.set.get("rotary.kind") != "proportional"}
        if not self.fields:
            return known
        return {
            name: each.model_copy(update={"fields": {**each.fields, **self.fields}}) for name, each in known.items()
        }


class Spelling(Rule):
    """A field that spells a list of layers, a letter for each, where that list itself is null."""

    listed: str = Field(alias="list")
    letters: dict[str, str]


class Family(Rule):
    """How a config.json of one model_type becomes a recipe; or, with `part`, which part of it does, by which family.

    Attributes:
        part: the field that holds the text part; what stands around it is left out.
        family: whose rules read the part, where it names none of `families`.
        any: a part may also be of whatever family transformers builds by itself, without a wrapper of its own.
        flat: a config without the part is the part itself, in files of old.
        either_ties: the part may say that the head is tied, where the whole does not: so it was before transformers 5.
        reference: the model_type of transformers that computes the same, for one that has no causal language model.
        aliases: other names of fields, as transformers' attribute_map has them.
        spelled: fields that spell another that lists layers, a letter a layer.
        before: fields that count the positions before a query's own, and those that they overrule, which count it too.
        counted: the field that lists all layers, which says how many there are where layer_count does not.
        inline: fields that hold fields, which are then named `attn_config.clip_qkv`, or numbers: `multipliers.0`.
        renamed: what transformers takes a part's model_type for.
        weights: the table of weight names; a switch may set another.
        longest: the field that says how many positions the model was trained for.
        export: what a new recipe says of its export, as the built-in recipes of the family do.
        per_layer: the field in which single layers say over what all say.
        thetas: the field that lists each layer's theta, 0 for one that does not turn.
    """

    name: str
    about: str
    part: str | None = None
    family: str | None = None
    families: tuple[str, ...] = ()
    any: bool = False
    flat: bool = False
    either_ties: bool = False
    reference: str | None = None
    draft: bool = False
    renamed: dict[str, str] = {}
    weights: str = "llama"
    layer_count: str = "num_hidden_layers"
    longest: str = "max_position_embeddings"
    export: Settings = {}
    per_layer: str | None = None
    thetas: str | None = None
    aliases: dict[str, str] = {}
    spelled: dict[str, Spelling] = {}
    before: dict[str, str] = {}
    counted: str | None = None
    inline: tuple[str, ...] = ()
    fixed: Settings = {}
    derived: dict[str, str] = {}
    fields: dict[str, FieldRule] = {}
    ignored: dict[str, str] = {}
    switches: dict[str, tuple[SwitchRow, ...]] = {}
    rope: dict[str, RopeSlot] = {}
    layers: dict[str, Trait] = {}

    @model_validator(mode="after")
    def _name_only_what_is_there(self) -> Self:
        unknown = sorted(self._mentioned() - self.fields.keys() - self.layers.keys())
        if unknown:
            raise ValueError(f"no rule in `fields` for {', '.join(unknown)}")
        return self

    def _mentioned(self) -> set[str]:
        """The config's fields that rules name."""
        named = set() if self.part else {self.layer_count}
        for rule in self.fields.values():
            named |= {*rule.when, *(fields_in(rule.absent) if rule.absent else ())}
            named |= {*fields_in(rule.over.removeprefix("sqrt "))} if rule.over else set()
            named |= {rule.times} if rule.times else set()
            named |= {*rule.adjusted.model_dump().values()} if rule.adjusted else set()
        named |= {name for expression in self.derived.values() for name in fields_in(expression)}
        for row in (row for rows in self.switches.values() for row in rows):
            named |= set(row.given)
        for layer_rule in (rule for trait in self.layers.values() for rule in trait.rules):
            named |= {*layer_rule.fields, *layer_rule.when}
        return named

    @property
    def rope_fields(self) -> set[str]:
        """Fields of the config that hold rotary parameters, in the old spelling and the new."""
        slots = self.rope.values()
        old = {slot.theta_field for slot in slots} | {slot.scaling_field for slot in slots}
        partial = {name for slot in slots if slot.partial is not None for name in (slot.partial_field, slot.dims_field)}
        return {name for name in old | partial if name} | ({"rope_parameters"} if slots else set())


class Irrelevant(Rule):
    """A field that makes no difference to logits: why, and the values for which that holds when not for all; with `key`
    it may be a mapping, whose entry of that name is judged, null where it has none; with `each` a list whose entries
    are all that; with `same` it says again what that other field does. Of any other value `needs` says
    what a recipe lacks, or `otherwise` what is wrong. `seen` is a released checkpoint whose config has it."""

    why: str
    key: str | None = None
    only: tuple[Any, ...] | None = None
    each: Any = None
    same: str | None = None
    needs: str | None = None
    otherwise: str | None = None
    seen: str | None = None


def fields_in(expression: str) -> Iterator[str]:
    """The config's fields that an expression names."""
    return (word for word in expression.split(" ") if word not in ("//", "/^", "*") and not word.isdecimal())


def family_names() -> list[str]:
    """Every model_type that there is a file for."""
    return sorted({*(path.stem for path in FAMILIES.glob("*.yaml")), *wrappers()})


@cache
def wrappers() -> Mapping[str, Mapping[str, Any]]:
    """Model types of which a family reads the text part, and what is said of each."""
    return _read(TABLES / "wrappers.yaml")


def load_family(name: str) -> Family:
    """The rules of a model_type. Raises ValueError for a file that is wrong: it is ours, not the user's."""
    return _load_family(name, activation_words())


@cache
def _load_family(name: str, added: tuple[tuple[str, str], ...]) -> Family:
    """The rules of a model_type, its fields of activations taking transformers' and those of plugins."""
    content = _merged(name, ())
    content.pop("extends", None)
    if "part" in content and not content.get("draft"):
        content["ignored"] = {**_read(TABLES / "around.yaml"), **content.get("ignored", {})}
        content["fields"] = {"tie_word_embeddings": {"type": "flag"}}
    for rule in content.get("fields", {}).values():
        paths = rule.get("sets", ()) if rule and not rule.get("exactly") else ()
        if any("activation" in path for path in ((paths,) if isinstance(paths, str) else paths)):
            rule["values"] = {**activations(), **dict(added), **rule.get("values", {})}
    try:
        return Family.model_validate({"name": name, **content})
    except ValidationError as error:
        raise ValueError(f"families/{name}.yaml: {error}") from error


def compared_as(name: str) -> str:
    """The model_type that a family's recipes are compared with; a wrapper's is that of its usual part."""
    family = load_family(name)
    return family.reference or (compared_as(family.family) if family.family else name)


@cache
def verified_families() -> Mapping[str, Any]:
    """What each family was verified with: transformers' version, rotaries, and by stage PSNR and SNR_min in dB."""
    found: dict[str, Any] = json.loads((FAMILIES / "verified.json").read_text())
    return found


@cache
def irrelevant_fields() -> Mapping[str, Irrelevant]:
    """What no family needs of a config.json, each with its reason."""
    table = _read(TABLES / "irrelevant.yaml")
    return {
        name: Irrelevant.model_validate({"why": entry} if isinstance(entry, str) else entry)
        for name, entry in table.items()
    }


@cache
def activations() -> Mapping[str, str]:
    """transformers' words for activations, and the recipe's."""
    return _read(TABLES / "activations.yaml")


@cache
def noted_fields(family: str) -> Mapping[str, Irrelevant]:
    """Fields that mean something elsewhere, and nothing in this family with the values that released files have."""
    table = _read(TABLES / "noted.yaml").get(family, {})
    return {name: Irrelevant.model_validate(entry) for name, entry in table.items()}


@cache
def rope_types() -> Mapping[str, RopeType]:
    """transformers' ROPE_INIT_FUNCTIONS in the recipe's words."""
    return {name: RopeType.model_validate(entry) for name, entry in _read(TABLES / "rope_types.yaml").items()}


@cache
def refused_models() -> Mapping[str, str]:
    """What recipes lack for a model_type that transformers knows."""
    return {name: why for why, names in _read(TABLES / "refused.yaml").items() for name in names}


@cache
def own_code_models() -> Mapping[str, str]:
    """What no family file reads of a model_type whose code comes with its files."""
    return {name: why for why, names in _read(TABLES / "own_code.yaml").items() for name in names}


def _merged(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise ValueError(f"families: {' -> '.join((*seen, name))} is a cycle")
    row = wrappers().get(name)
    if row is not None:
        return {**WRAPPED, **row, "about": f"{row['about']}: {ONLY}"}
    content = _read(FAMILIES / f"{name}.yaml")
    parent = content.get("extends")
    return content if parent is None else _merge(_merged(parent, (*seen, name)), content)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif value is None and key in merged and key not in NULL_MEANS:
            del merged[key]
        else:
            merged[key] = value
    return merged


def _read(path: Path) -> dict[str, Any]:
    root, problems = read_yaml(path.read_bytes(), path.name)
    if root is None or problems or not isinstance(root.value, dict):
        raise ValueError(
            "; ".join(f"{problem.mark}: {problem.message}" for problem in problems) or f"{path}: not a mapping"
        )
    plain: dict[str, Any] = root.plain()
    return plain
