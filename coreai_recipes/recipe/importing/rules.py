"""The rules of which a family's file is made: of a field, of several fields together, and of what layers differ in.

`family.py` describes the language in which they are written.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Settings = dict[str, Any]
Type = Literal["size", "count", "number", "flag", "word", "list", "mapping", "any"]


class Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Adjusted(Rule):
    """Two thirds of a width, times one field, rounded up to a multiple of another, where a third is true: how LFM2 says
    the width of its MLP."""

    when: str
    times: str
    multiple: str


class Each(Rule):
    """A field that may list a value for each layer. Where it is null and there are more than `first` layers, these have
    `value`; all others have `others`. With `always` it lists where layers are alike too."""

    first: int = 0
    value: Any = None
    others: Any = None
    always: bool = False


class FieldRule(Rule):
    """One field of config.json.

    Attributes:
        default: what transformers' config class says when the field is absent.
        sets: the paths that take its value; one that ends with `?` only where the block that holds it is there.
        values: the recipe's words for the config's; a value that is not there is refused. An activation has
            transformers' words besides, unless `exactly`.
        off: the value with which the field sets nothing (null, unless said).
        absent: what null stands for: another field, `one // other` (`/^` rounds up) or `one * other`, each a field or a
            number. unsaid: a value that stands for the same, or says as little as null.
        via: the recipe has the field to the power -1/2, one over it, or half of it.
        over: the recipe has the field divided by this one, by what `absent` may say, or by a root: `sqrt
            num_hidden_layers`.
        times: the recipe has the field times this one.
        among: the recipe has the share of each of so many, a whole number.
        adjusted: how the recipe's width is made of it; written back as it is, with the flag false.
        each: it may list a value for each layer.
        doubles: a path whose value is doubled when the field is true.
        when: other fields and what they must be, for this one to mean anything; `on` and `off` are words for it.
        of: the layers that it is for, by what they differ in.
        only: the values that need nothing of a recipe; any other needs what `needs` names.
        fits: a draft's field that must equal a field of its target's model.
    """

    default: Any = None
    sets: tuple[str, ...] = ()
    values: dict[str, Any] | None = None
    exactly: bool = False
    off: Any = None
    absent: str | None = None
    unsaid: Any = None
    via: Literal["inverse_sqrt", "inverse", "half"] | None = None
    over: str | None = None
    times: str | None = None
    among: str | None = None
    adjusted: Adjusted | None = None
    each: Each | None = None
    doubles: str | None = None
    when: Settings = {}
    of: dict[str, str] = {}
    only: tuple[Any, ...] | None = None
    needs: str | None = None
    fits: str | None = None
    type: Type | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_one_path(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("sets"), str):
            return {**data, "sets": (data["sets"],)}
        return data

    @property
    def allows_absence(self) -> bool:
        """Whether what transformers takes for an absent field is one of the values that need nothing."""
        return self.only is None or self.default in self.only

    @property
    def is_off_said(self) -> bool:
        return "off" in self.model_fields_set

    def says_nothing(self, value: Any) -> bool:
        """Whether a value is the one that stands for none."""
        return self.unsaid is not None and value == self.unsaid and type(value) is not bool

    @property
    def value_type(self) -> Type | None:
        """What a value must be: as said, else as the default is."""
        if self.type or self.default is None:
            return self.type or ("size" if self.absent else None)
        kinds: dict[type, Type] = {
            bool: "flag",
            int: "size",
            float: "number",
            str: "word",
            list: "list",
            dict: "mapping",
        }
        return kinds[type(self.default)]

    @property
    def may_be_null(self) -> bool:
        return self.default is None or self.absent is not None or (self.is_off_said and self.off is None)


class SwitchRow(Rule):
    """When the fields are so, these paths have these values."""

    given: Settings = Field(alias="if")
    set: Settings


class LayerRule(Rule):
    """What some layers are; the pattern is the one key that is said.

    Attributes:
        listed: a field that lists all layers, when it is not null; `values` are ours for its words, `needs` what a
            recipe lacks for others, and for null.
        positive: a field with a value for each layer, of which those count that have one above 0.
        cycle: a field that lists layers, again and again until there are enough.
        patterns: a field that lists layers as pairs of a pattern and how often it comes, [[["global", "local"], 12]].
        every: layers i with i % n == at % n, n and at a number or a field.
        since: layers from that field's index on. after: layers behind it, which -1 says of the last layer. last, first:
            so many. within: a field that lists indices, of which the first is `counted`. all: each.
        value: what they are. when: other fields and what they must be for the rule to say anything.
    """

    listed: str | None = Field(default=None, alias="list")
    cycle: str | None = None
    patterns: str | None = None
    values: dict[str, str] = {}
    needs: dict[str, str] = {}
    positive: str | None = None
    every: int | str | None = None
    at: int | str = -1
    since: str | None = Field(default=None, alias="from")
    after: str | None = None
    last: int | str | None = None
    first: int | str | None = None
    within: str | None = Field(default=None, alias="in")
    counted: int = 0
    all: str | None = None
    value: str | None = Field(default=None, alias="is")
    when: Settings = {}

    @property
    def fields(self) -> Iterator[str]:
        """The config's fields that the pattern reads."""
        for name in (
            self.listed,
            self.positive,
            self.cycle,
            self.patterns,
            self.every,
            self.at,
            self.since,
            self.after,
            self.last,
            self.first,
            self.within,
        ):
            if isinstance(name, str):
                yield name


class TraitValue(Rule):
    """One thing that a layer can be.

    Attributes:
        name: its part of the kind's name, when that is not the value itself; empty for none.
        set: the paths that make a layer this.
        derived: the paths that then take what other fields make.
        shares: the layers read the cache of the kind that is this instead, and alike otherwise.
    """

    name: str | None = None
    set: Settings = {}
    derived: dict[str, str] = {}
    shares: str | None = None


class Trait(Rule):
    """Something in which layers differ: what they can be, and the rules of which the first that says something counts.

    The last value is what a kind is that no other describes. With `attends` false it makes no difference to keys and
    values, and layers that share a cache may differ in it from those whose cache they read.
    """

    attends: bool = True
    values: dict[str, TraitValue]
    rules: tuple[LayerRule, ...]
