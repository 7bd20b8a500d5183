"""Plots and tables of docs/compression.md from what `python -m bench compression --json FILE` has written.

python -m bench.compression_figures FILE

A table stands between two comments that name it; one whose figures are not in the file stays as it is, and so does a
plot.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.compression_tables import TABLES

DOCS = Path(__file__).parents[1] / "docs"
IMAGES = DOCS / "images"
THEIRS, PLAIN, FITTED = "#888888", "#d6604d", "#1b7837"
Row = dict[str, Any]


def main(file: Path) -> None:
    from matplotlib import use

    use("Agg")
    found = {name: each["figures"] for name, each in json.loads(file.read_text()).items()}
    of_smollm2 = found.get("smollm2_bits", {})
    if {"search", "coremltools"} <= of_smollm2.keys():
        draw_smollm2(of_smollm2, IMAGES / "compression-smollm2.png")
    if "tokens" in of_smollm2:
        draw_tokens(of_smollm2["tokens"], IMAGES / "compression-tokens.png")
    if "gemma4_tiny_bits" in found:
        draw_tiny(found["gemma4_tiny_bits"], IMAGES / "compression-gemma4-tiny.png")
    draw_prediction(found, IMAGES / "compression-predicted.png")
    page = DOCS / "compression.md"
    page.write_text(filled(page.read_text(), found))


def filled(text: str, found: dict[str, Row]) -> str:
    """The page with each table whose benchmark is in `found`."""
    for name, (benchmark, parts, write) in TABLES.items():
        if benchmark not in found or any(part not in found[benchmark] for part in parts):
            continue
        begin, end = f"<!-- {name}: written by bench.compression_figures -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        lines = ["", *write(found[benchmark]), "", ""]
        text = before + begin + "\n".join(lines) + end + rest.split(end)[1]
    return text


def draw_smollm2(found: Row, path: Path) -> None:
    figure, axes = new(6.4, 4.2)
    widths = ("3 bits", "4 bits", "6 bits", "int8")
    fitted = found["search"]["uniform"]
    axes.plot(*points([found["coremltools"][w] for w in widths], "bits"), "^--", color=THEIRS, label="coremltools")
    axes.plot(*points([found["plain"][w] for w in widths], "bits"), "o--", color=PLAIN, label="without a text")
    axes.plot(*points([fitted[w] for w in widths], "bits"), "o--", color=FITTED, label="fitted, all alike")
    axes.plot(*points(list(found["search"]["search"].values()), "bits"), "s-", color=FITTED, label="fitted, search")
    integers = [found[part]["int4 for blocks of 32"] for part in ("coremltools", "plain", "ingredients")]
    for row, colour in zip(integers, (THEIRS, PLAIN, FITTED), strict=True):
        axes.plot(row["bits"], row["kl"], "D", color=colour, markersize=4, fillstyle="none")
    axes.plot([], [], "D", color="black", fillstyle="none", markersize=4, label="int4 for blocks of 32")
    axes.set(yscale="log", xlabel="bits a weight", ylabel="KL divergence, nats")
    finish(figure, axes, path)


def draw_tiny(found: Row, path: Path) -> None:
    figure, axes = new(6.4, 4.2)
    theirs = [row for words, row in found["coremltools"].items() if words != "int4 for blocks of 32"]
    axes.plot(*points(theirs, "bits"), "^--", color=THEIRS, label="coremltools")
    for how, words, colour in (("data-free", "without a text", PLAIN), ("fitted", "fitted", FITTED)):
        of = found["ours"][how]
        axes.plot(*points(list(of["uniform"].values()), "bits"), "o--", color=colour, label=f"{words}, all alike")
        axes.plot(*points(list(of["search"].values()), "bits"), "s-", color=colour, label=f"{words}, search")
    axes.set(yscale="log", xlabel="bits a weight", ylabel="KL divergence, nats")
    finish(figure, axes, path)


def draw_tokens(found: Row, path: Path) -> None:
    """What is lost on text of another kind, and on text that was fitted to."""
    figure, axes = new(4.8, 3.4)
    counts = list(map(int, found))
    for words, key, colour in (("GPL-3 and Genesis", "kl", FITTED), ("a window that was fitted to", "own", PLAIN)):
        axes.plot(counts, [row[key] for row in found.values()], "o-", color=colour, label=words, markersize=4)
    axes.set(xscale="log", xlabel="tokens fitted to", ylabel="KL divergence, nats")
    axes.set_ylim(bottom=0)
    axes.set_xticks(counts, [f"{count:,}" for count in counts], fontsize=8)
    axes.minorticks_off()
    finish(figure, axes, path)


def draw_prediction(found: dict[str, Row], path: Path) -> None:
    """Measured over predicted KL divergence."""
    figure, axes = new(4.8, 4.2)
    axes.plot([1e-4, 2], [1e-4, 2], color="#999999", linewidth=1)
    for words, rows, marker, colour in predicted(found):
        x, y = [row["predicted"] for row in rows], [row["kl"] for row in rows]
        axes.plot(x, y, marker, color=colour, label=words, markersize=4, fillstyle="none")
    axes.set(xscale="log", yscale="log", xlabel="predicted KL, nats", ylabel="measured KL, nats")
    finish(figure, axes, path)


def predicted(found: dict[str, Row]) -> Iterator[tuple[str, list[Row], str, str]]:
    if "gemma4_tiny_bits" in found:
        for how, words, colour in (("data-free", "without a text", PLAIN), ("fitted", "fitted", FITTED)):
            of = found["gemma4_tiny_bits"]["ours"][how]
            yield f"gemma4-tiny, {words}", [*of["uniform"].values(), *of["search"].values()], "o", colour
    if "search" in found.get("smollm2_bits", {}):
        of = found["smollm2_bits"]["search"]
        rows = [row for part in ("uniform", "search", "whole") for row in of[part].values()]
        yield "SmolLM2, fitted", rows, "s", FITTED


def points(rows: list[Row], x: str) -> tuple[list[float], list[float]]:
    ordered = sorted(rows, key=lambda row: float(row[x]))
    return [row[x] for row in ordered], [row["kl"] for row in ordered]


def new(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib import pyplot as plt

    plt.rcParams |= {"lines.linewidth": 1, "lines.markersize": 4}
    return plt.subplots(figsize=(width, height), dpi=90)


def finish(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
