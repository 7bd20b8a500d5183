"""Tables of docs/compression.md: each a function from a benchmark's figures to lines of Markdown."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.texts import NAMES

Row = dict[str, Any]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """`>` sets a column flush right."""
    ruler = "|".join("---:" if column.startswith(">") else "---" for column in columns)
    head = " | ".join(column.removeprefix(">") for column in columns)
    return [f"| {head} |", f"|{ruler}|", *(f"| {' | '.join(row)} |" for row in rows)]


def smollm2(found: Row) -> list[str]:
    """Forms by bits, coremltools' beside ours."""
    search, fitted = found["search"], found["ingredients"]
    integers = "int4 for blocks of 32"
    rows = []
    for bits, words, ours in (
        ("8", "int8", search["uniform"]["int8"]),
        ("6", "6 bits", search["uniform"]["6 bits"]),
        ("4.5", integers, fitted[integers]),
        ("4.5", "search at 4.5", search["search"]["4.5"]),
        ("4", "4 bits", search["uniform"]["4 bits"]),
        ("3", "3 bits", search["uniform"]["3 bits"]),
    ):
        theirs, plain = found["coremltools"].get(words), found["plain"].get(words)
        rows.append(
            (bits, said(words), apart(theirs), apart(plain), apart(ours), perplexities(theirs), perplexities(ours))
        )
    columns = (">bits", "form", ">coremltools: KL", ">no text", ">fitted", ">coremltools: perplexity", ">fitted")
    return table(columns, rows)


def whole(found: Row) -> list[str]:
    """With the table."""
    rows = [
        ("coremltools' palettes of 4 bits", found["coremltools"]["4 bits, the table too"]),
        ("palettes of 4 bits, no text", found["plain"]["4 bits, the table too"]),
        *found["search"]["whole"].items(),
    ]
    return table(
        ("what", ">bits in all", ">KL", ">top-1", ">perplexity"),
        [
            (words, f"{row['bits']:.2f}", apart(row), f"{100 * row['top_1']:.1f} %", perplexities(row))
            for words, row in rows
        ],
    )


def ingredients(found: Row) -> list[str]:
    rows = [
        ("coremltools' clusters", found["coremltools"]["4 bits"]),
        ("clusters at the optimum of their squared error", found["plain"]["4 bits"]),
        *((words, row) for words, row in found["ingredients"].items() if not words.startswith("int4")),
    ]
    return table(
        ("palettes of 4 bits", ">KL", ">mean", ">top-1", ">processor s"),
        [
            (
                words,
                apart(row),
                number(row["kl"]),
                f"{100 * row['top_1']:.1f} %",
                f"{row['seconds']:.0f}" if "seconds" in row else "",
            )
            for words, row in rows
        ],
    )


def tokens(found: Row) -> list[str]:
    columns = (">tokens fitted to", ">KL", ">mean", ">on a window of its own")
    rows = found["tokens"].items()
    return table(columns, [(f"{int(n):,}", apart(r), number(r["kl"]), number(r["own"])) for n, r in rows])


def gemma4_tiny(found: Row) -> list[str]:
    plain, fitted, theirs = found["ours"]["data-free"], found["ours"]["fitted"], found["coremltools"]
    rows = [
        (row["bits"], said(words), theirs.get(words), plain["uniform"][words], row)
        for words, row in fitted["uniform"].items()
    ]
    rows += [(row["bits"], "**search**", None, plain["search"][bits], row) for bits, row in fitted["search"].items()]
    columns = (">bits", "form", ">KL, coremltools", ">no text", ">fitted", ">top-1, fitted", ">perplexity, fitted")
    return table(
        columns,
        [
            (
                f"{bits:.2f}",
                form,
                *(number(each["kl"]) if each else "" for each in (theirs_, plain_, row)),
                f"{100 * row['top_1']:.1f} %",
                f"{row['perplexity']:.2f}",
            )
            for bits, form, theirs_, plain_, row in sorted(rows, key=lambda each: (each[0], each[1]))
        ],
    )


def palettes(found: Row) -> list[str]:
    rows = []
    for what, row in found.items():
        if what != "coremltools":
            rows.append((f"{what}, {row['weights'] / 1e6:.0f} M weights", row["more_seconds"], row))
    rows.insert(1, ("SmolLM2, coremltools' `palettize_weights`", found["coremltools"]["seconds"], found["coremltools"]))
    return table(
        ("without a text", ">ns of processor a weight", ">processor s", ">peak, GB", ">package, MB"),
        [
            (
                words,
                f"{row['ns_a_weight']:.0f}",
                f"{seconds:.1f}",
                f"{row['peak_bytes'] / 1e9:.2f}",
                f"{size_of(row) / 1e6:.0f}",
            )
            for words, seconds, row in rows
        ],
    )


def e2b(found: Row) -> list[str]:
    built, fit = found["build"], found["fit"]
    return table(
        ("Gemma 4 E2B's shape", ">s", ">processor s", ">peak, GB"),
        [
            (
                "whole, `--bits 4`, no text",
                f"{built['seconds']:.0f}",
                f"{built['processor_seconds']:.0f}",
                f"{built['peak_bytes'] / 1e9:.2f}",
            ),
            (
                f"its two widest layers, fitted to {fit['tokens']:,} tokens",
                "",
                " and ".join(f"{each:.0f}" for each in fit["fit_seconds"]),
                f"{fit['peak_bytes'] / 1e9:.2f}",
            ),
        ],
    )


def size_of(row: Row) -> float:
    size = row["bytes"]
    return float(size["palettes"] if isinstance(size, dict) else size)


def said(words: str) -> str:
    return f"palettes of {words}" if words[0].isdigit() else words


def apart(row: Row | None) -> str:
    """KL divergence on each of the texts."""
    return " / ".join(number(row["texts"][name]["kl"]) for name in NAMES) if row else ""


def perplexities(row: Row | None) -> str:
    return " / ".join(f"{row['texts'][name]['perplexity']:.2f}" for name in NAMES) if row else ""


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value >= 0.001 else f"{value:.5f}"


# by its name on the page: the benchmark, and what writes it
TABLES: dict[str, tuple[str, Callable[[Row], list[str]]]] = {
    "smollm2": ("smollm2_bits", smollm2),
    "whole": ("smollm2_bits", whole),
    "ingredients": ("smollm2_bits", ingredients),
    "tokens": ("smollm2_bits", tokens),
    "gemma4-tiny": ("gemma4_tiny_bits", gemma4_tiny),
    "palettes": ("palettes", palettes),
    "e2b": ("e2b_bits", e2b),
}
