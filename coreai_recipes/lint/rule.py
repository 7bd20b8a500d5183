"""A rule of `rules.yaml`, typed. What it says of a program is decided by the predicates that its cases name."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from coreai_recipes.errors import UserError
from coreai_recipes.lint.devices import Chip, chips, chips_named
from coreai_recipes.lint.predicates import PREDICATES
from coreai_recipes.recipe.yaml_reader import read_yaml

FILE = Path(__file__).with_name("rules.yaml")

Level = Literal["error", "warning", "note", "unknown"]
LEVELS: tuple[Level, ...] = ("error", "warning", "unknown", "note")  # as findings are listed
LooksAt = Literal[
    "operations", "results", "operands", "states", "inputs", "boundary", "functions", "program", "files", "bundle"
]  # fmt: skip


PackageFormat = Literal["coreml", "coreai"]
FactOf = Literal["engine", "float16", "core_ml", "host"]
FORMATS: dict[FactOf, tuple[PackageFormat, ...]] = {
    "engine": ("coreml", "coreai"),  # measured on it, or said of it, whatever made the program
    "float16": ("coreml", "coreai"),
    "core_ml": ("coreml",),
    "host": ("coreml", "coreai"),
}


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Case(_Described):
    """One way to break a rule: every predicate of `when` holds. The first case that holds for an item is its finding.

    `formats`, `chips` and `message` are the rule's where they are not given.
    """

    when: Annotated[dict[str, Any], Field(min_length=1)]
    level: Literal["error", "warning", "note"]
    formats: tuple[PackageFormat, ...] | None = None
    chips: list[str] | None = None
    message: str | None = None
    remedy: str | None = None

    @field_validator("when")
    @classmethod
    def _has_predicates(cls, when: dict[str, Any]) -> dict[str, Any]:
        unknown = when.keys() - PREDICATES.keys()
        if unknown:
            raise ValueError(f"no such predicate: {', '.join(sorted(unknown))}")
        return when


class Rule(_Described):
    """What the engine wants, who says so and how sure that is.

    Attributes:
        looks_at: what the cases are tried on, one by one.
        fact_of: what it is a fact of, and so which `formats` of packages it holds for.
        chips: those that it holds for, `all` or some; `systems` the versions it was seen on, for the reader.
        message: what a finding says; words in braces are filled in by the predicates.
        remedy: what to do, `--set KEY=VALUE` where a setting does it.
        disputed: who says otherwise.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9-]*$")]
    looks_at: LooksAt
    fact_of: FactOf
    cases: Annotated[list[Case], Field(min_length=1)]
    chips: list[str] = ["all"]
    systems: str | None = None
    source: str
    confidence: Literal["high", "medium", "low", "disputed"]
    disputed: str | None = None
    about: str
    message: str
    remedy: str

    @model_validator(mode="after")
    def _says_who_disputes(self) -> "Rule":
        if self.confidence == "disputed" and not self.disputed:
            raise ValueError(f"{self.id}: is disputed, but nobody is named")
        for case in self.cases:
            chips_of(self, case)
        return self

    @property
    def formats(self) -> tuple[PackageFormat, ...]:
        return FORMATS[self.fact_of]

    def to_json(self) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "formats": list(self.formats)}

    @property
    def level(self) -> str:
        """The worst that it may find."""
        found = {case.level for case in self.cases}
        return next(level for level in LEVELS if level in found)

    def settled(self, package_format: PackageFormat | None = None) -> list[tuple[Case, tuple[str, ...] | None]]:
        """The cases that hold for a format, or all, with the chips that each holds for, None for all; a limit of the
        chips' own is one case each."""
        held = [case for case in self.cases if package_format in (None, *(case.formats or self.formats))]
        return [settled for case in held for settled in _settle(self, case)]


def chips_of(rule: Rule, case: Case) -> tuple[str, ...] | None:
    """Ids, None for all chips."""
    named = case.chips or rule.chips
    return None if named == ["all"] else chips_named(named)


def _settle(rule: Rule, case: Case) -> list[tuple[Case, tuple[str, ...] | None]]:
    """`chip.width` in a predicate becomes the widths of chips, the largest first: what breaks that breaks all below."""
    key = next((name for name, limit in case.when.items() if _is_of_chip(limit)), None)
    if key is None:
        return [(case, chips_of(rule, case))]
    wanted = chips_of(rule, case) or tuple(chips())
    named = str(case.when[key]).removeprefix("chip.")
    limits = {id_: limit for id_ in wanted if (limit := _limit(chips()[id_], named)) is not None}
    return [
        (
            case.model_copy(update={"when": {**case.when, key: size}}),
            tuple(id_ for id_, limit in limits.items() if limit <= size),
        )
        for size in sorted(set(limits.values()), reverse=True)
    ]


def _is_of_chip(limit: Any) -> bool:
    return isinstance(limit, str) and limit.startswith("chip.")


def _limit(chip: Chip, name: str) -> int | None:
    found = getattr(chip, name)
    assert found is None or isinstance(found, int)
    return found


@cache
def rules() -> dict[str, Rule]:
    """All of them, by id."""
    node, problems = read_yaml(FILE.read_bytes(), str(FILE))
    assert node is not None, problems  # our own file
    found = TypeAdapter(list[Rule]).validate_python(node.plain())
    return {rule.id: rule for rule in found}


def find_rule(id_: str) -> Rule:
    """The rule of that id. Raises UserError with the nearest."""
    from difflib import get_close_matches

    found = rules().get(id_)
    if found is None:
        close = get_close_matches(id_, rules(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"{id_!r:.80}: no such rule: {hint}docs/lint.md lists them")
    return found
