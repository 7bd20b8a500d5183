"""The engine's rules that a program breaks, and what one of them says."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coreai_recipes.report.console import print_entries, print_table

Document = Mapping[str, Any]
FACTS = {
    "engine": "a fact of the engine, whatever made the program",
    "float16": "a fact of float16",
    "core_ml": "a fact of what Core ML and coremltools make of a program",
    "host": "a fact of the files that a host reads",
}
LEVELS = {"error": "errors", "warning": "warnings", "unknown": "unknown without an audit", "note": "notes"}


def print_lint(lint: Document, levels: Sequence[str] = tuple(LEVELS)) -> None:
    """Findings of all levels or of some, those of one rule in a line, and where a call changes units."""
    rows = list(groups([finding for finding in lint["findings"] if finding["level"] in levels]))
    if rows:
        print_entries(("level", "rule", "where"), rows)
    functions: dict[str, list[Document]] = {}
    for crossing in lint["crossings"]:
        functions.setdefault(crossing["function"], []).append(crossing)
    for function, crossings in functions.items():
        print(f"{function}: {_changes(crossings)}")
    print(f"rules: {summary(lint['findings'])}")
    for line in not_run(lint):
        print(line)


def groups(findings: Sequence[Document]) -> Iterator[tuple[tuple[str, str, str], str]]:
    """A line for each rule and level, in the order of the findings, and what the first of them says."""
    found: dict[tuple[str, str], list[Document]] = {}
    for finding in findings:
        found.setdefault((finding["level"], finding["id"]), []).append(finding)
    for (level, id_), all_ in found.items():
        first = all_[0]
        what = first["message"] if level in ("note", "unknown") else f"{first['message']}; {first['remedy']}"
        yield (level, id_, _where(all_)), what


def _where(findings: Sequence[Document]) -> str:
    functions = dict.fromkeys(finding["function"] for finding in findings if finding["function"])
    first = findings[0]["place"]
    places = first if len(findings) == 1 else f"{first} and {len(findings) - 1:,} more"
    return places if not functions or [first] == [*functions] else f"{', '.join(functions)}: {places}"


def _changes(crossings: Sequence[Document]) -> str:
    """Where the calls of a function change units."""
    if len(crossings) == 1:
        return f"1 change of unit per call: to the {crossings[0]['to']} at {crossings[0]['place']}"
    places = ", ".join(f"to the {each['to']} at {each['place']}" for each in crossings[:3])
    more = f" and {len(crossings) - 3} more" if len(crossings) > 3 else ""
    return f"{len(crossings)} changes of unit per call: {places}{more}"


def not_run(lint: Document) -> Iterator[str]:
    """A line on the rules that are of Core ML's programs alone, where others were looked at; one on those of the engine
    where it is not meant to run it; and one where it was not the saved program that was looked at."""
    if lint.get("not_run"):
        yield f"not run, being of Core ML's programs: {', '.join(lint['not_run'])}"
    if lint.get("off_engine"):
        yield f"not run, being of the engine, and the host asks for the GPU: {', '.join(lint['off_engine'])}"
    if lint.get("unread"):
        yield f"held against the sizes of the recipe alone: {lint['unread']}"


def summary(findings: Sequence[Document]) -> str:
    """How many rules are broken, by the worst level of their findings, which come first."""
    worst: dict[str, str] = {}
    for finding in findings:
        worst.setdefault(finding["id"], finding["level"])
    counts = ((level, [*worst.values()].count(level), name) for level, name in LEVELS.items())
    return ", ".join(f"{n} {level if n == 1 and name == level + 's' else name}" for level, n, name in counts)


def print_rule(rule: Document) -> None:
    """A rule, as `--explain` shows it."""
    held = ", ".join(rule["chips"]) + (f"; {rule['systems']}" if rule["systems"] else "")
    rows = [
        ("wants", rule["about"]),
        ("level", " or ".join(dict.fromkeys(case["level"] for case in rule["cases"]))),
        ("holds for", held),
        ("formats", f"{', '.join(rule['formats'])}: {FACTS[rule['fact_of']]}"),
        ("source", rule["source"]),
        ("confidence", rule["confidence"] + (f": {rule['disputed']}" if rule["disputed"] else "")),
        ("remedy", rule["remedy"]),
    ]
    print_table((rule["id"], ""), rows)
