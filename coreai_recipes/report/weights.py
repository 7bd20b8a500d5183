"""How the matrices of a package are stored."""

from collections.abc import Mapping, Sequence
from typing import Any

from coreai_recipes.report.console import print_table
from coreai_recipes.report.words import decibels


def print_storage(by_tensor: Sequence[Mapping[str, Any]]) -> None:
    """How each kind of matrix is stored, and how near the checkpoint's the furthest of it is where that is known,
    and what all of it is predicted to add to the KL divergence."""
    from coreai_recipes.storage.accounting import by_kind

    rows = [
        (
            row["name"],
            f"{row['count']:,}",
            f"{row['bits_per_weight']:.2f}",
            f"{row['share']:.1%}",
            decibels(row["psnr_db"]),
            "-" if row["kl"] is None else f"{row['kl']:.2g}",
            "; ".join((row["form"], *row["notes"])),
        )
        for row in by_kind(by_tensor)
    ]
    columns = ("weights", ">tensors", ">bits", ">of the file", ">lowest dB", ">KL", "stored as")
    if all(row[4] == "-" for row in rows):
        print_table((*columns[:4], columns[6]), [(*row[:4], row[6]) for row in rows])
    else:
        print_table(columns, rows)
