"""What a recipe costs: bytes, and what a call multiplies."""

from collections.abc import Mapping
from typing import Any

from coreai_recipes.report.console import print_table

Document = Mapping[str, Any]


def print_costs(plan: Document) -> None:
    """Bytes, a line each."""
    rows = [(cost["what"], f"{cost['bytes']:,}", cost["how"]) for cost in plan["costs"]]
    print_table(("what", ">bytes", "how"), rows)


def print_products(plan: Document) -> None:
    """Floating point operations of a call of each function."""
    print_table(*products_table(plan), title="What a call multiplies")


def products_table(plan: Document) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows: each function, in all and what the shared caches save of it."""
    workloads, saved = plan["workloads"], plan["saved_in_prefill"]
    functions = list(dict.fromkeys(name for found in workloads for name in found["flops"]))
    counts = {name: plan["functions"].get(name, 1) for name in functions}
    named = [f">{name}" if count == 1 else f">{name} of {count}" for name, count in counts.items()]
    total = {name: sum(found["flops"].get(name, 0) for found in workloads) for name in functions}
    rows = [*workloads, {"what": "all", "flops": total, "how": "a multiply-add is two"}, *([saved] if saved else [])]
    cells = [
        (row["what"], *(f"{row['flops'][name]:,}" if name in row["flops"] else "-" for name in functions), row["how"])
        for row in rows
    ]
    return ("products", *named, "how"), cells
