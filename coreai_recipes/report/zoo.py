"""A zoo's table and plan, for the terminal and the gallery: one line for each cell."""

from collections.abc import Mapping, Sequence
from typing import Any

from coreai_recipes.report import console
from coreai_recipes.report.words import count

Row = Mapping[str, Any]
VERDICTS = {True: "passed", False: "FAILED", None: "-"}
NOT_STAGES = ("plan", "build", "convert", "lint")
RANDOM_WEIGHTS = "random weights"  # how the name of such a checkpoint begins


def by_cell(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows of each cell as one: its sizes, its loss, its verdict, and what took how long."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        place = tuple(row[name] for name in ("recipe", "bits", "device", "format"))
        cell = found.setdefault(
            place,
            dict(zip(("recipe", "bits", "device", "format"), place, strict=True))
            | dict.fromkeys(("passed", "bytes", "bits_per_weight", "tokens_per_second", "kl", "seconds", "checkpoint"))
            | {"stages": 0, "why": None},
        )
        if row["stage"] == "plan":
            cell |= {name: row[name] for name in ("bytes", "bits_per_weight", "tokens_per_second")}
        elif row["stage"] == "build":
            cell |= {name: row[name] for name in ("passed", "seconds", "why", "checkpoint")}
        elif row["stage"] not in NOT_STAGES:
            cell["stages"] += row["passed"] is True
            if row["kl"] is not None and not is_random(cell):  # what random weights lose says nothing of a model
                cell["kl"] = row["kl"]
    return list(found.values())


def is_random(cell: Row) -> bool:
    """Whether it was built of random weights."""
    return (cell["checkpoint"] or "").startswith(RANDOM_WEIGHTS)


def form_words(cell: Row) -> tuple[str, str, str]:
    """Its bits, device and format, as a table shows them."""
    return "-" if cell["bits"] is None else str(cell["bits"]), cell["device"] or "-", cell["format"]


def print_zoo(rows: Sequence[Row]) -> None:
    """A line for each cell, and below them why some did not pass."""
    cells = by_cell(rows)
    columns = ("recipe", ">bits", "device", "format", "verdict", ">MB", ">KL, nats", ">tokens/s", ">seconds")
    console.print_table(columns, [cell_line(cell) for cell in cells])
    for cell in cells:
        if cell["passed"] is False:
            print(f"{words_of(cell)}: {cell['why']}")
    if any(cell["tokens_per_second"] is not None for cell in cells):
        print("tokens/s: at most, by the highest rate at which the device was seen to read weights")


def words_of(cell: Row) -> str:
    """As `Cell.words`."""
    bits = None if cell["bits"] is None else f"{cell['bits']} bits"
    return ", ".join(each for each in (cell["recipe"], bits, cell["device"], cell["format"]) if each)


def cell_line(cell: Row) -> tuple[str, ...]:
    """The cells of a line of the table."""
    return (
        cell["recipe"],
        *form_words(cell),
        VERDICTS[cell["passed"]],
        _figure(cell["bytes"], lambda value: f"{value / 1e6:,.1f}"),
        _figure(cell["kl"], lambda value: f"{value:.4g}"),
        _figure(cell["tokens_per_second"], lambda value: f"{value:,.1f}"),
        _figure(cell["seconds"], lambda value: f"{value:.1f}"),
    )


def print_zoo_plan(plan: Mapping[str, Any]) -> None:
    """What every cell is expected to cost, and all of them."""
    columns = ("recipe", ">bits", "device", "format", ">MB", ">tokens/s", ">memory, GB", ">minutes", "")
    rows = [
        (
            cell["recipe"],
            *form_words(cell),
            _figure(cell["bytes"], lambda value: f"{value / 1e6:,.1f}"),
            _figure(cell["tokens_per_second"], lambda value: f"{value:,.1f}"),
            _figure(cell["memory"], lambda value: f"{value / 1e9:.1f}"),
            _figure(cell["seconds"], lambda value: f"{value / 60:.1f}"),
            cell["why"] or ("built" if cell["kept"] else ""),
        )
        for cell in plan["cells"]
    ]
    console.print_table(columns, rows)
    print(
        f"{count(len(rows), 'cell')}, {plan['kept']} of them built: {plan['bytes'] / 1e9:.2f} GB of bundles to write, "
        f"{plan['memory'] / 1e9:.1f} GB of memory for the largest"
    )
    print(f"about {plan['hours']:.1f} hours on {count(plan['workers'], 'worker')} here: an estimate from sizes alone")


def _figure(value: Any, words: Any) -> str:
    return "-" if value is None else str(words(value))
