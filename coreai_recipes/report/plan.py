"""What a recipe costs: bytes, and what a call multiplies."""

from collections.abc import Mapping, Sequence
from typing import Any

from coreai_recipes.report.console import folded, print_table
from coreai_recipes.report.words import milliseconds

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


def print_fit(plan: Document) -> None:
    """A recipe on a device: what must fit, the bounds on its time, what mends each rule and what a build chooses."""
    if plan["fit"] is None:
        return
    print_table(("on the device", ">figure", "how"), fit_table(plan["fit"]), title=plan["fit"]["name"])
    for rule, words in plan["mends"].items():
        print(f"{rule}: {'no setting mends it alone' if words is None else f'mended by {words}'}")
    for choice in plan["choices"] or ():
        print(f"build --device chooses {choice['field']}: {choice['value']}")
        for line in folded(choice["why"]):
            print(line)
    print(
        f"not measured of {plan['fit']['name']}: {'; '.join(plan['fit']['unmeasured']) or 'nothing that bounds need'}"
    )


def fit_table(fit: Document) -> list[tuple[str, str, str]]:
    """Rows of a recipe on a device: what, the figure, how it comes about."""
    largest, memory = fit["largest"], fit["memory"]
    near = "working set not measured" if fit["working_set"] is None else f"{fit['working_set']:,} stay near"
    rows = [
        ("weights read a token", f"{fit['token_weights']:,}", "bytes of a call of decode"),
        ("states read a token", f"{fit['token_states']:,}", "bytes, all rows"),
        ("products a token", f"{fit['token_flops']:,}", "a multiply-add is two"),
        ("largest operand", f"{largest['bytes']:,}", f"{largest['place']} of {largest['function']}, padded; {near}"),
        ("states", f"{fit['states']['count']}", f"{fit['states']['bytes']:,} bytes a session"),
    ]
    limit = "no limit is known" if fit["file_limit"] is None else f"{fit['file_limit']:,} at most (pkg-size)"
    rows += [(f"file {name}", f"{size:,}", limit) for name, size in fit["packages"].items()]
    sold = f"sold with {', '.join(map(str, memory))} GB" if memory else "memory not known"
    rows.append(("weights, tables, states", f"{fit['resident']:,}", sold))
    if fit["most_tokens_per_second"] is not None:
        how = f"bound: {_rates(fit['streaming'])} GB/s of weights were measured"
        rows.append(("tokens/s", f"<= {fit['most_tokens_per_second']:.1f}", how))
    for bound in fit["first_token"]:
        what = f"first token of {bound['prompt']:,}"
        rows.append((what, f">= {milliseconds(bound['seconds'])}", f"bound: {bound['by']}"))
    return rows


def _rates(rates: Sequence[float]) -> str:
    return " to ".join(f"{rate:g}" for rate in dict.fromkeys(rates))
