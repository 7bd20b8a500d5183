"""What verify found, stage by stage, and its JSON. A leaf: it imports nothing of ours, and no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Figures:
    """One tensor's two figures, in dB: `verify.figures` has the formulae."""

    tensor: str
    psnr_db: float
    snr_min_db: float

    def is_below(self, psnr_floor: float, snr_min_floor: float) -> bool:
        return self.psnr_db < psnr_floor or self.snr_min_db < snr_min_floor


@dataclass(frozen=True)
class StageResult:
    """One stage: `passed` is None when it did not run, and `detail` then says why under "skipped".

    `floor_db` is that of the PSNR, None where there is none; the detail holds the other one.
    """

    name: str
    passed: bool | None
    psnr_db: float | None = None
    snr_min_db: float | None = None
    floor_db: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def skipped(self) -> str | None:
        """Why the stage did not run, or None when it did."""
        return self.detail.get("skipped")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "psnr_db": number(self.psnr_db),
            "snr_min_db": number(self.snr_min_db),
            "floor_db": number(self.floor_db),
            "detail": _plain(self.detail),
        }


@dataclass(frozen=True)
class Report:
    """The stages in the order in which they were asked for."""

    stages: tuple[StageResult, ...] = ()

    @property
    def passed(self) -> bool:
        """At least one stage ran and none failed."""
        verdicts = [stage.passed for stage in self.stages]
        return any(verdicts) and False not in verdicts

    @property
    def nothing_ran(self) -> str | None:
        """Why no stage ran, in one sentence; None when one did."""
        if any(stage.skipped is None for stage in self.stages):
            return None
        reasons = "; ".join(dict.fromkeys(stage.skipped or "" for stage in self.stages))
        return f"nothing was verified: {reasons or 'no stage was asked for'}"

    def with_detail(self, facts: Mapping[str, Any]) -> "Report":
        """The report with `facts` in the detail of each stage that ran."""
        return Report(tuple(s if s.skipped else replace(s, detail={**s.detail, **facts}) for s in self.stages))

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "stages": [stage.to_json() for stage in self.stages]}


def skip(name: str, reason: str) -> StageResult:
    """A stage that did not run."""
    return StageResult(name, None, detail={"skipped": reason})


def judge(
    name: str, figures: Sequence[Figures], psnr_floor: float, snr_min_floor: float, detail: dict[str, Any]
) -> StageResult:
    """A stage that holds `figures`, in the order of computation, against two floors and names the first below."""
    first = next((f for f in figures if f.is_below(psnr_floor, snr_min_floor)), None)
    worst_psnr = min(figures, key=lambda f: f.psnr_db)
    worst_snr_min = min(figures, key=lambda f: f.snr_min_db)
    found = {
        "snr_min_floor_db": snr_min_floor,
        "tensors": len(figures),
        "worst_psnr": worst_psnr.tensor,
        "worst_snr_min": worst_snr_min.tensor,
        **({"first_below": figures_json(first)} if first else {}),
        "figures": [figures_json(each) for each in figures],  # in the order of computation, for the page
    }
    return StageResult(
        name, first is None, worst_psnr.psnr_db, worst_snr_min.snr_min_db, psnr_floor, {**found, **detail}
    )


def figures_json(figures: Figures) -> dict[str, Any]:
    return {
        "tensor": figures.tensor,
        "psnr_db": number(figures.psnr_db),
        "snr_min_db": number(figures.snr_min_db),
    }


def number(value: float | None) -> float | str | None:
    """Two decimals; JSON has no infinity, so it is a word."""
    if value is None or math.isfinite(value):
        return None if value is None else round(value, 2)
    return "inf" if value > 0 else "-inf"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return number(value) if isinstance(value, float) and not math.isfinite(value) else value
