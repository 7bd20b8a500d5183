"""Rules held against a subject: findings, each with its place, its source and what to do."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from coreai_recipes.lint.crossings import Crossing, crossings_of
from coreai_recipes.lint.devices import Device
from coreai_recipes.lint.items import items
from coreai_recipes.lint.predicates import PREDICATES, UNKNOWN
from coreai_recipes.lint.predicates.predicate import Context, Details, Item
from coreai_recipes.lint.reading import LintInput
from coreai_recipes.lint.rule import LEVELS, Case, Level, Rule, rules

MOST_FINDINGS = 10_000  # of one rule in one function
SHOWN = 160
# of ranges that nobody knows
REMEDIES = {"coreml": "recipe audit BUNDLE", "coreai": "recipe audit, of Core ML's package of the same recipe"}


@dataclass(frozen=True)
class Finding:
    """One place where a rule is broken, or where that takes ranges that nobody knows."""

    id: str
    level: Level
    function: str | None
    place: str
    message: str
    source: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Lint:
    """All findings, the worst first, where a call changes units, and the rules that are not of the packages' format, or
    of an engine that is not meant to run them. `unread` is why it was not the saved program that was looked at, where
    it was not."""

    findings: tuple[Finding, ...]
    crossings: tuple[Crossing, ...]
    not_run: tuple[str, ...] = ()
    off_engine: tuple[str, ...] = ()
    unread: str | None = None

    @property
    def has_errors(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "crossings": [crossing.to_json() for crossing in self.crossings],
            **({"not_run": list(self.not_run)} if self.not_run else {}),
            **({"off_engine": list(self.off_engine)} if self.off_engine else {}),
            **({"unread": self.unread} if self.unread else {}),
        }


def lint(
    subject: LintInput, device: Device | None = None, only: Sequence[str] = (), allow: Mapping[str, str] | None = None
) -> Lint:
    """Every rule, or those of `only`, on a subject. With a device the rules of its chip; without one all of them, an
    error for some chips being a warning that names them. `allow` has the reasons for which errors are let pass."""
    context = Context(subject)
    chip = None if device is None else device.chip.id
    asked = [rule for rule in rules().values() if not only or rule.id in only]
    of_format = [rule for rule in asked if subject.format in rule.formats]
    off_engine = [rule for rule in of_format if rule.fact_of == "engine" and not subject.is_for_engine]
    found = [
        _allowed(finding, (allow or {}).get(rule.id))
        for rule in of_format
        if rule not in off_engine
        for finding in _hold(rule, context, chip)
    ]
    order = {level: place for place, level in enumerate(LEVELS)}
    found.sort(key=lambda finding: order[finding.level])  # stable: rules keep their order, and each its running order
    crossings = [
        replace(crossing, place=_printable(crossing.place))
        for program in (subject.programs if subject.is_for_engine else ())
        for function in program.functions
        for crossing in crossings_of(function, context.flow(function))
    ]
    not_run = tuple(rule.id for rule in asked if rule not in of_format)
    return Lint(tuple(found), tuple(crossings), not_run, tuple(rule.id for rule in off_engine), subject.unread)


def _allowed(finding: Finding, reason: str | None) -> Finding:
    if reason is None or finding.level != "error":
        return finding
    return replace(finding, level="warning", message=f"{finding.message} (allowed: {_printable(reason)})")


def _hold(rule: Rule, context: Context, chip: str | None) -> Iterator[Finding]:
    settled = rule.settled(context.subject.format)
    cases = [(case, chips) for case, chips in settled if chip is None or chips is None or chip in chips]
    if not cases:
        return
    types = _types_of(case for case, _ in cases)
    unknown: dict[str | None, tuple[Item, Case, tuple[str, ...] | None, int]] = {}
    counts: dict[str | None, int] = {}
    for item in items(rule.looks_at, context, types):
        name = None if item.function is None else item.function.name
        for case, chips in cases:
            answer = _try(case, item)
            if answer is UNKNOWN:
                first, first_case, first_chips, count = unknown.get(name, (item, case, chips, 0))
                unknown[name] = first, first_case, first_chips, count + 1
                break
            if isinstance(answer, dict):
                counts[name] = counts.get(name, 0) + 1
                if counts[name] <= MOST_FINDINGS:
                    yield _finding(rule, case, chips if chip is None else None, item, answer)
                if rule.looks_at != "bundle":  # of which each case asks another thing
                    break
    for name, (item, _, chips, count) in unknown.items():
        named = f" on {', '.join(chips)}" if chips and chip is None else ""
        places = f"{count:,} places" if count > 1 else "1 place"
        message = f"unknown: run audit: {rule.about}{named}: {places} with unknown ranges"
        remedy = REMEDIES[context.subject.format]
        yield Finding(rule.id, "unknown", name, _printable(item.place), message, rule.source, remedy)


def _try(case: Case, item: Item) -> Any:
    """The words of all predicates; None when one does not hold, UNKNOWN when all others do."""
    details: Details = {}
    is_unknown = False
    for name, parameter in case.when.items():
        answer = PREDICATES[name](item, parameter)
        if answer is None:
            return None
        if isinstance(answer, dict):
            details |= answer
        else:
            is_unknown = True
    return UNKNOWN if is_unknown else details


def _finding(rule: Rule, case: Case, chips: tuple[str, ...] | None, item: Item, details: Details) -> Finding:
    words = {key: _words(value) for key, value in {**_described(item), **details}.items()}
    message = (case.message or rule.message).format_map(_Words(words))
    level: Level = case.level
    if chips is not None:  # no device was named
        message = f"{message} (on {', '.join(chips)})"
        level = "warning" if level == "error" else level
    remedy = (case.remedy or rule.remedy).format_map(_Words(words))
    name = None if item.function is None else item.function.name
    return Finding(rule.id, level, name and _printable(name), _printable(item.place), message, rule.source, remedy)


class _Words(dict[str, str]):
    def __missing__(self, key: str) -> str:
        raise AssertionError(f"a message wants {key}, which no predicate of its case gives")


def _described(item: Item) -> Details:
    found: Details = {"place": item.place}
    if item.operation is not None:
        found["type"] = item.operation.type
    elif item.value is not None:
        found["type"] = "state" if item.value.is_state else "value"
    if item.value is not None:
        found |= {"shape": item.value.shape, "dtype": item.value.dtype}
    if item.file is not None:
        found["size"] = f"{item.file[1] / 1e9:.2f} GB"
    return found


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        sizes = ", ".join(str(size) if size != -1 else "?" for size in value[:16])
        return f"({sizes})" if len(value) <= 16 else f"({sizes}, ...)"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.5g}"
    return _printable(str(value))


def _printable(word: str) -> str:
    shown = word if word.isprintable() else json.dumps(word)
    return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."


def _types_of(cases: Iterator[Case]) -> frozenset[str] | None:
    """The types of operations that any case could hold for, None for all."""
    found: set[str] = set()
    for case in cases:
        if "type" not in case.when:
            return None
        found.update(case.when["type"])
    return frozenset(found)
