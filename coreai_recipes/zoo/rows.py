"""The table of a zoo: a row for each step of each cell. Its columns, and how rows come from what was built."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

from coreai_recipes.lint.findings import Lint
from coreai_recipes.zoo.cells import Cell
from coreai_recipes.zoo.metering import CONVERT, Spent

Row = dict[str, Any]
Type = Literal["string", "int64", "float64", "bool"]

COLUMNS: dict[str, Type] = {
    "recipe": "string",
    "bits": "int64",
    "device": "string",
    "format": "string",
    "stage": "string",
    "passed": "bool",
    "psnr_db": "float64",
    "snr_min_db": "float64",
    "floor_db": "float64",
    "kl": "float64",
    "top_1": "float64",
    "perplexity": "float64",
    "weights": "int64",
    "bytes": "int64",
    "bits_per_weight": "float64",
    "tokens_per_second": "float64",
    "errors": "int64",
    "warnings": "int64",
    "checkpoint": "string",
    "sha256": "string",
    "cell": "string",
    "why": "string",
    "seconds": "float64",
    "cpu_seconds": "float64",
    "peak_memory": "int64",
}
MEASURED = ("seconds", "cpu_seconds", "peak_memory")  # all others are the same whenever and wherever it is built
PLAN, LINT = "plan", "lint"


def row(cell: Cell, key: str, stage: str, spent: Spent | None = None, **figures: Any) -> Row:
    """A row; what has no figure in this step is None."""
    found: Row = dict.fromkeys(COLUMNS)
    found |= {"recipe": cell.recipe, "bits": cell.bits, "device": cell.device, "format": cell.format}
    found |= {"stage": stage, "cell": key, **figures}
    return found if spent is None else {**found, **asdict(spent)}


def report_rows(cell: Cell, key: str, report: Mapping[str, Any], spent: Mapping[str, Spent]) -> Iterator[Row]:
    """A row for each stage of a verification's report."""
    if CONVERT in spent:
        yield row(cell, key, CONVERT, spent[CONVERT])
    for stage in report["stages"]:
        detail = stage["detail"]
        loss = detail.get("kl") or {}
        yield row(
            cell,
            key,
            stage["name"],
            spent.get(stage["name"]),
            passed=stage["passed"],
            psnr_db=_number(stage["psnr_db"]),
            snr_min_db=_number(stage["snr_min_db"]),
            floor_db=_number(stage["floor_db"]),
            kl=loss.get("mean"),
            top_1=detail.get("top_1"),
            perplexity=(detail.get("perplexity") or {}).get("compressed"),
            why=detail.get("skipped") or "; ".join(detail.get("over_budget", ())) or None,
        )


def lint_row(cell: Cell, key: str, found: Lint | None, passed: bool = True) -> Iterator[Row]:
    """What the package breaks of the engine's rules, where rules look at it."""
    if found is None:
        return
    levels = [finding.level for finding in found.findings]
    errors = sorted({finding.id for finding in found.findings if finding.level == "error"})
    yield row(
        cell,
        key,
        LINT,
        passed=passed,
        errors=levels.count("error"),
        warnings=levels.count("warning"),
        why=", ".join(errors) or None,
    )


def _number(figure: Any) -> float | None:
    """A figure of a report's JSON, in which infinity is a word."""
    return None if figure is None else float(figure)


def to_json(rows: Iterable[Row]) -> list[Row]:
    """Rows for a file of JSON, where infinity is a word and what has no figure is left out."""
    return [
        {name: "inf" if value == math.inf else value for name, value in each.items() if value is not None}
        for each in rows
    ]


def from_json(rows: Iterable[Row]) -> list[Row]:
    """As they were before `to_json`."""
    return [{name: math.inf if each.get(name) == "inf" else each.get(name) for name in COLUMNS} for each in rows]
