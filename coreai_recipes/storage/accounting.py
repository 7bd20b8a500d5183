"""Every parameter of a package by itself: how it is stored and why so, what it takes, how near it is to its source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from coreai_recipes.storage.compression import Parameters, any_layer, shown_name

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.decoder.filling import Weight

OTHERS = "all others"


def account(stored: Parameters) -> Iterator[dict[str, Any]]:
    """A row for each parameter, in a package's order, from its shape alone.

    Bytes are those of its blobs, tables and scales among them; with the records and gaps between blobs, which
    `Parameters.file_bytes` counts, they are weight.bin's. `psnr_db` and `kl` are for others to fill in.
    """
    whole = stored.file_bytes
    for name, shape in stored.shapes.items():
        choice = stored.compression.choose(name, shape)
        size = choice.storage.bytes(shape)
        row: dict[str, Any] = {
            "name": shown_name(name),
            "form": str(choice.storage),
            "weights": prod(shape),
            "bits_per_weight": round(8 * size / prod(shape), 4),
            "bytes": size,
            "share": round(size / whole, 6),
            "psnr_db": None,
            "kl": None,
        }
        if choice.rule is not None:
            row["rule"] = choice.rule.pattern
        if choice.over:
            row["over"] = [rule.pattern for rule in choice.over]
        if choice.why is not None:
            row["why"] = choice.why
        yield row


def by_kind(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `account` for a reader: the same matrix of all layers as one, what takes most first, and what nothing
    is said of last."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        is_plain = row["form"] == "float16" and "rule" not in row
        key = (OTHERS, row["form"]) if is_plain else (any_layer(row["name"]), row["form"])
        groups.setdefault(key, []).append(row)
    found = []
    for (name, form), those in groups.items():
        size, weights = sum(row["bytes"] for row in those), sum(row["weights"] for row in those)
        costs = [row["kl"] for row in those if row["kl"] is not None]
        measured = [row["psnr_db"] for row in those if isinstance(row["psnr_db"], float)]
        found.append(
            {
                "name": those[0]["name"] if len(those) == 1 else name,
                "count": len(those),
                "form": form,
                "bits_per_weight": round(8 * size / weights, 4),
                "bytes": size,
                "share": round(sum(row["share"] for row in those), 6),
                "psnr_db": min(measured, default=None),
                "kl": sum(costs) if costs else None,
                "notes": list(dict.fromkeys(note for row in those for note in _notes(row))),
            }
        )
    return sorted(found, key=lambda row: (row["name"] == OTHERS, -row["bytes"]))


def _notes(row: Mapping[str, Any]) -> Iterator[str]:
    if "over" in row:
        yield f"`{row['rule']}` holds over {', '.join(f'`{pattern}`' for pattern in row['over'])}"
    if "why" in row:
        yield row["why"]


@dataclass
class MeasuredWeight:
    """A package's weight, told apart from the checkpoint's own while it is read for another purpose."""

    stored: Weight
    own: Weight
    _psnr: float | None = None

    @property
    def tensor(self) -> str:
        return self.stored.tensor

    def read(self) -> Tensor:
        found = self.stored.read()
        if self._psnr is None:
            self._psnr = _compare([found], self.own.blocks())
        return found

    def blocks(self) -> Iterator[Tensor]:
        yield from self.stored.blocks()

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        return self.stored.read_rows(rows)

    @property
    def psnr_db(self) -> float:
        """20 log10(max|w|) - 10 log10(mean((w - w')^2)), infinite where they are equal."""
        if self._psnr is None:
            self._psnr = _compare(self.stored.blocks(), self.own.blocks())
        return self._psnr


def measured(stored: Mapping[str, Weight], own: Mapping[str, Weight]) -> dict[str, MeasuredWeight]:
    return {name: MeasuredWeight(weight, own[name]) for name, weight in stored.items()}


def _compare(stored: Iterable[Tensor], own: Iterable[Tensor]) -> float:
    """Blocks of the same parameter, cut in two ways."""
    error, peak, count = 0.0, 0.0, 0
    given_back = iter(stored)
    held: Tensor | None = None
    for block in own:
        start = 0
        while start < len(block):
            held = next(given_back) if held is None or not len(held) else held
            rows = min(len(held), len(block) - start)
            one = block[start : start + rows].float()
            error += (one - held[:rows]).square().double().sum().item()
            peak = max(peak, one.abs().max().item())
            held, start, count = held[rows:], start + rows, count + one.numel()
    if error == 0:
        return math.inf
    return -math.inf if peak == 0 else round(20 * math.log10(peak) - 10 * math.log10(error / count), 2)
