"""What the terminal shows: tables, bars, errors. Results go to standard output, everything else to standard error."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

from coreai_recipes.terminal.streams import drawing, escape

if TYPE_CHECKING:
    from collections.abc import Callable


WIDEST = 1 << 16  # of a table where nothing is folded


def print_json(document: Any) -> None:
    """The one JSON document of `--json`, which is JSON on a terminal too: DEL is all that `dumps` leaves raw."""
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on standard output; a column named with a leading `>` is set flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = drawing(sys.stdout)

    def shown(words: str) -> Text:
        """Text, because a string would be read as rich's markup."""
        return Text(escape(words) if out.isatty() else words)

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(shown(column.removeprefix(">")), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row))
    if out.isatty():
        Console(file=out).print(table)
        return
    # a pipe has no width: nothing is folded or padded for it
    console = Console(file=StringIO(), width=WIDEST, color_system=None)
    console.print(table)
    lines = [line.rstrip().removeprefix(" ") for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    print("\n".join(line for line in lines if line.strip("─ ")))


def print_entries(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], str]]) -> None:
    """Rows of short cells, a line each, with what there is to say of them below, indented and folded between words.

    A column named with a leading `>` is set flush right.
    """
    names = [column.removeprefix(">") for column in columns]
    widths = [max(map(len, cells)) for cells in zip(names, *(row for row, _ in rows), strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = zip(columns, cells, widths, strict=True)
        return "  ".join(cell.rjust(w) if name.startswith(">") else cell.ljust(w) for name, cell, w in aligned).rstrip()

    print(line(names))
    for cells, detail in rows:
        print(line(cells))
        for words in folded(detail):
            print(words)


def folded(text: str, indent: str = "    ") -> list[str]:
    """The lines of a text, indented; on a terminal no longer than it is wide, and broken between words only."""
    if not text:
        return []
    if not sys.stdout.isatty():
        return [indent + line for line in text.split("\n")]
    width = max(shutil.get_terminal_size().columns, 2 * len(indent))
    wrap = {"initial_indent": indent, "subsequent_indent": indent, "break_on_hyphens": False, "break_long_words": False}
    return [line for part in text.split("\n") for line in textwrap.wrap(part, width, **wrap)]  # type: ignore[arg-type]


@contextmanager
def progress_bar() -> "Iterator[Callable[[str, int, int], None] | None]":
    """A bar a step on a terminal's standard error, with what is left of it; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:24}", markup=False),
        BarColumn(20),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    # rich would take over both streams, and obey what is printed meanwhile
    console = Console(file=drawing(sys.stderr))
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(escape(step), total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield show


def print_notes(notes: Sequence[str]) -> None:
    """What was decided against the recipe's word, a line each."""
    for note in notes:
        print(note)
