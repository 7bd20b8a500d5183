"""Plots of docs/compression.md from what `python -m bench compression --json FILE` has written.

python -m bench.compression_figures FILE
"""

import json
import sys
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parents[1] / "docs/images"
COLOURS = {"data-free": "#d6604d", "fitted": "#1b7837"}


def main(file: Path) -> None:
    from matplotlib import use

    use("Agg")
    found = json.loads(file.read_text())["compression"]["figures"]
    draw_loss(found["ours"], IMAGES / "compression-loss.png")
    draw_prediction(found["ours"], IMAGES / "compression-predicted.png")


def draw_loss(ours: dict[str, Any], path: Path) -> None:
    """KL divergence over bits: forms that are the same for all matrices, and the search."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=110)
    for how, of in ours.items():
        uniform, search = list(of["uniform"].values()), list(of["search"].values())
        label = f"{how}, all alike"
        axes.plot(*points(uniform, "bits", "kl"), "o--", color=COLOURS[how], label=label, linewidth=1, markersize=4)
        axes.plot(*points(search, "bits", "kl"), "s-", color=COLOURS[how], label=f"{how}, search", markersize=4)
    axes.set(yscale="log", xlabel="bits a weight", ylabel="KL divergence, nats")
    finish(figure, axes, path)


def draw_prediction(ours: dict[str, Any], path: Path) -> None:
    """Measured over predicted KL divergence."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(4.6, 4.2), dpi=110)
    axes.plot([1e-4, 1], [1e-4, 1], color="#999999", linewidth=1)
    for how, of in ours.items():
        both = [*of["uniform"].values(), *of["search"].values()]
        axes.plot(*points(both, "predicted", "kl"), "o", color=COLOURS[how], label=how, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="predicted KL, nats", ylabel="measured KL, nats")
    finish(figure, axes, path)


def points(rows: list[dict[str, float]], x: str, y: str) -> tuple[list[float], list[float]]:
    ordered = sorted(rows, key=lambda row: row[x])
    return [row[x] for row in ordered], [row[y] for row in ordered]


def finish(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
