"""What a bundle did on a device, against what its plan bounds."""

from collections.abc import Mapping
from typing import Any

from coreai_recipes.report.console import print_table

Document = Mapping[str, Any]


def print_device_report(report: Document) -> None:
    """The functions, a line each, and the rate of decode beside its bound."""
    chip, made = report["chip"], f"{report['os_build']}, {report['date']}"
    print_table(
        ("function", ">load s", ">call ms", ">engine", ">gpu", ">cpu"),
        function_rows(report),
        title=f"{report['device']}: {chip}, {made}",
    )
    for line in lines(report):
        print(line)


def function_rows(report: Document) -> list[tuple[str, ...]]:
    """Each function: seconds until loaded, ms a call, operations on the engine, the GPU and the CPU."""
    return [
        (
            name,
            _number(called["load_seconds"]),
            _number(called["median_ms"]),
            *(
                ("-", "-", "-")
                if called["placed"] is None
                else (f"{called['placed'][unit]:,}" for unit in ("engine", "gpu", "cpu"))
            ),
        )
        for name, called in report["functions"].items()
    ]


def lines(report: Document) -> list[str]:
    """What else a report says: the rate against its bound, the memory, the source."""
    rate, bounds = report["tokens_per_second"], report["bounds"]
    bound = None if bounds is None else bounds["most_tokens_per_second"]
    found = []
    if rate is not None:
        against = "no bound: its rate of weights was not measured" if bound is None else f"bound {bound:.1f}"
        found.append(f"{rate:.1f} tokens/s ({against})")
    if report["footprint_bytes"] is not None:
        found.append(f"{report['footprint_bytes'] / 1e6:,.1f} MB held at most")
    if report["source"] is not None:
        found.append(f"source: {report['source']}")
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
