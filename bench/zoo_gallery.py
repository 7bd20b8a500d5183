"""The gallery of a zoo for the documentation: its rows, a chart, its page and the table of docs/zoo.md. `make zoo`.

    python -m bench.zoo_gallery examples/zoo.yaml [COMMIT]

docs/zoo.json has what the zoo's table says, less what a clock measured; all else is made of it. COMMIT built the zoo,
by default the one that is checked out.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.compression_tables import table
from coreai_recipes.report.page.drawing import draw
from coreai_recipes.report.page.gallery import gallery_charts, gallery_of
from coreai_recipes.report.zoo import VERDICTS, by_cell

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURES, CHART, GALLERY = DOCS / "zoo.md", DOCS / "zoo.json", DOCS / "images/zoo.svg", DOCS / "pages/zoo.html"
BEGIN, END = "<!-- gallery: written by `make zoo` -->\n", "<!-- end of gallery -->\n"
STAGES = ("torch", "package", "package_float16")
COLUMNS = ("recipe", ">bits", "verdict", ">MB", ">tokens/s", *(f">`{stage}`" for stage in STAGES), ">KL", "built of")
NAMED = ("torch", "coremltools", "transformers")  # versions that are worth a line
CHARTED = 50e6  # bytes from which on a model is in the chart: those of the fast tests would take half of it
Row = Mapping[str, Any]


def main(zoo: Path, commit: str) -> None:
    from coreai_recipes.zoo.identity import PACKAGES, versions
    from coreai_recipes.zoo.loading import load_zoo
    from coreai_recipes.zoo.rows import MEASURED, to_json
    from coreai_recipes.zoo.store import Store
    from coreai_recipes.zoo.table import read_table

    loaded = load_zoo(zoo)
    rows = [row | dict.fromkeys(MEASURED) for row in read_table(Store(loaded.store))]
    built = {(row["recipe"], row["bits"], row["device"], row["format"]) for row in rows}
    missing = [cell.words for cell in loaded.cells if (cell.recipe, cell.bits, cell.device, cell.format) not in built]
    used = {name: version for name, version in versions().items() if name in PACKAGES}
    found = {"commit": commit, "versions": used, "missing": missing, "rows": to_json(rows)}
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    found = read_figures()
    CHART.write_text(chart_of(found["rows"]))
    GALLERY.write_text(gallery_of(found["rows"], zoo.stem))
    before, _, after = split_page(PAGE.read_text())
    PAGE.write_text(before + gallery(found) + after)


def read_figures() -> dict[str, Any]:
    """What docs/zoo.json says, with every column in every row."""
    from coreai_recipes.zoo.rows import from_json

    found = json.loads(FIGURES.read_text())
    return {**found, "rows": from_json(found["rows"])}


def chart_of(rows: Sequence[Row]) -> str:
    """The gallery's first chart as a picture by itself: on white, whatever it is shown on."""
    (spec, *_) = gallery_charts([cell for cell in by_cell(rows) if (cell["bytes"] or 0) >= CHARTED])
    if spec is None:
        sys.exit("no cell of the zoo passed")
    svg = draw({**spec, "config": {**spec["config"], "background": "white"}}, 0)
    return svg.replace("currentColor", "#222") + "\n"


def gallery(found: Mapping[str, Any]) -> str:
    """The table in Markdown, between its marks, and what made it."""
    cells = by_cell(found["rows"])
    made = ", ".join(f"{name} {found['versions'][name]}" for name in NAMED)
    passed = sum(cell["passed"] is True for cell in cells)
    said = [f"{len(cells)} cells, of which {passed} passed, at commit {found['commit']} with {made}."]
    if found["missing"]:
        said += ["", f"Of the same file, {len(found['missing'])} cells were not built in this run."]
    lines = table(COLUMNS, [_line(cell, found["rows"]) for cell in cells])
    return BEGIN + "\n".join(["", *said, "", *lines, "", ""]) + END


def _line(cell: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    place = ("recipe", "bits", "device", "format")
    mine = {row["stage"]: row for row in rows if all(row[name] == cell[name] for name in place)}
    return (
        cell["recipe"],
        str(cell["bits"]),
        VERDICTS[cell["passed"]],
        _figure(cell["bytes"] and cell["bytes"] / 1e6, ",.1f"),
        _figure(cell["tokens_per_second"], ",.0f"),
        *(_figure(mine[stage]["psnr_db"] if stage in mine else None, ".1f") for stage in STAGES),
        _figure(cell["kl"] if cell["passed"] else None, ".2g"),
        cell["why"] or cell["checkpoint"],
    )


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def split_page(text: str) -> tuple[str, str, str]:
    """What stands before the table, the table with its marks, and what stands behind."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    return before, begin + inside + end, after


def checked_out() -> str:
    command = ["git", "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(command, cwd=DOCS, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else checked_out())
