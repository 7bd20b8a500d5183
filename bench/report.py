"""What a benchmark found: a table, the targets beside what was measured, and both as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """A figure that was asked for: `value` is at least, or at most, `bound`."""

    what: str
    value: float
    bound: float
    at_least: bool
    unit: str = "times"

    @property
    def is_met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        asked = f"at {'least' if self.at_least else 'most'} {self.bound:.3g}"
        return f"{'met' if self.is_met else 'missed'}: {self.what}: {self.value:.3g} {self.unit}, asked for {asked}"


@dataclass
class Result:
    """A table with its columns (`>` sets one flush right), notes on how it was measured, and the targets."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def print(self) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in self.columns:
            right = column.startswith(">")
            table.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        print(self.title)
        console = Console()
        # a pipe has no width: nothing is to be folded for it
        console.print(table) if console.is_terminal else Console(width=160).print(table)
        for line in (*self.notes, *(target.line() for target in self.targets)):
            print(line)
        print(flush=True)

    def to_json(self) -> dict[str, Any]:
        targets = [
            {"what": t.what, "value": t.value, "bound": t.bound, "at_least": t.at_least, "met": t.is_met}
            for t in self.targets
        ]
        return {"title": self.title, "figures": self.figures, "targets": targets, "notes": self.notes}


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def per_second(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"
